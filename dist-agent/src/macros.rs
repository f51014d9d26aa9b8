//! `messages!`: the derives that the types of an agent need.

/// Declares the types of an agent: its state, commands, replies, queries and answers.
///
/// Adds what [`Wire`](crate::Wire) needs, and `Debug`, `Clone`, `PartialEq`. With the feature `node` also serde's
/// traits, with variants and fields in `snake_case`, so that the node speaks the types as JSON: `Add(3)` is
/// `{"add":3}`, `Get` is `"get"`. Neither rkyv nor serde has to stand in the user's manifest.
#[cfg(not(feature = "node"))]
#[macro_export]
macro_rules! messages {
    ($($item:item)*) => { $crate::rafted_value::messages! { $($item)* } };
}

/// Declares the types of an agent: its state, commands, replies, queries and answers.
///
/// Adds what [`Wire`](crate::Wire) needs, and `Debug`, `Clone`, `PartialEq`. With the feature `node` also serde's
/// traits, with variants and fields in `snake_case`, so that the node speaks the types as JSON: `Add(3)` is
/// `{"add":3}`, `Get` is `"get"`. Neither rkyv nor serde has to stand in the user's manifest.
#[cfg(feature = "node")]
#[macro_export]
macro_rules! messages {
    ($($item:item)*) => {
        $crate::rafted_value::messages! {
            $(
                #[derive($crate::serde::Serialize, $crate::serde::Deserialize)]
                // serde takes this path as text, in which `$crate` means nothing.
                #[serde(crate = "::dist_agent::serde", rename_all = "snake_case", deny_unknown_fields)]
                $item
            )*
        }
    };
}
