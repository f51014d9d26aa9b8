//! Reports and plans as hexadecimal digits, which people copy from one machine to another.

use rafted_value::WireError;

use crate::error::PlanUnreadable;

/// The first byte of what is written: its format.
const FORMAT: u8 = 1;

/// What was encoded, as digits. Plain data always encodes; what would not is written as nothing, and not read.
pub(crate) fn to_text(encoded: Result<impl AsRef<[u8]>, WireError>) -> String {
    let Ok(encoded) = encoded else { return String::new() };
    let bytes = std::iter::once(&FORMAT).chain(encoded.as_ref());
    bytes.map(|byte| format!("{byte:02x}")).collect()
}

/// What the digits say; lines may be broken anywhere.
pub(crate) fn from_text(text: &str) -> Result<Vec<u8>, PlanUnreadable> {
    let digits: Vec<u8> = text.bytes().filter(|byte| !byte.is_ascii_whitespace()).collect();
    let digit = |byte: u8| char::from(byte).to_digit(16).and_then(|digit| u8::try_from(digit).ok());
    let pairs = digits.chunks(2).map(|pair| match pair {
        [high, low] => Some(digit(*high)? << 4 | digit(*low)?),
        _ => None,
    });
    let bytes: Option<Vec<u8>> = pairs.collect();
    let bytes = bytes.ok_or_else(|| unreadable("it is not an even number of hexadecimal digits"))?;
    match bytes.split_first() {
        None => Err(unreadable("it is empty")),
        Some((&FORMAT, encoded)) => Ok(encoded.to_vec()),
        Some((format, _)) => Err(unreadable(&format!("its format is {format}, this program knows {FORMAT}"))),
    }
}

pub(crate) fn unreadable(reason: &str) -> PlanUnreadable {
    PlanUnreadable { reason: reason.to_owned() }
}

impl From<WireError> for PlanUnreadable {
    fn from(error: WireError) -> Self {
        unreadable(&error.to_string())
    }
}
