//! Agents' types as JSON, erased: how HTTP speaks to modules that it does not know.

use std::collections::BTreeMap;
use std::marker::PhantomData;
use std::sync::Arc;

use rafted_value::{Wire, decode, encode};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::behaviour::Agent;

/// An agent whose types HTTP can speak. It is implemented for every [`Agent`] whose types have serde's traits;
/// [`messages!`](crate::messages) adds them.
pub trait HttpAgent:
    Agent<Command: DeserializeOwned + Serialize, Reply: Serialize, Query: DeserializeOwned + Serialize, Answer: Serialize>
{
}

impl<A> HttpAgent for A where
    A: Agent<
            Command: DeserializeOwned + Serialize,
            Reply: Serialize,
            Query: DeserializeOwned + Serialize,
            Answer: Serialize,
        >
{
}

/// The codecs of the modules that a node knows, by name.
#[derive(Clone, Default)]
pub(crate) struct Codecs {
    codecs: BTreeMap<&'static str, Arc<dyn Codec>>,
}

/// Bytes that do not go together with a module's types, in words.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub(crate) struct CodecError(String);

/// The codec of one module.
pub(crate) trait Codec: Send + Sync {
    fn command(&self, json: &[u8]) -> Result<Vec<u8>, CodecError>;
    fn reply(&self, bytes: &[u8]) -> Result<Value, CodecError>;
    fn query(&self, json: &[u8]) -> Result<Vec<u8>, CodecError>;
    fn answer(&self, bytes: &[u8]) -> Result<Value, CodecError>;
}

impl Codecs {
    pub(crate) fn insert<A: HttpAgent>(&mut self) {
        self.codecs.insert(A::MODULE, Arc::new(Typed::<A>(PhantomData)));
    }

    pub(crate) fn get(&self, module: &str) -> Option<Arc<dyn Codec>> {
        self.codecs.get(module).cloned()
    }

    pub(crate) fn names(&self) -> Vec<&'static str> {
        self.codecs.keys().copied().collect()
    }
}

struct Typed<A>(PhantomData<fn() -> A>);

impl<A: HttpAgent> Codec for Typed<A> {
    fn command(&self, json: &[u8]) -> Result<Vec<u8>, CodecError> {
        from_json::<A::Command>(json)
    }

    fn reply(&self, bytes: &[u8]) -> Result<Value, CodecError> {
        to_json::<A::Reply>(bytes)
    }

    fn query(&self, json: &[u8]) -> Result<Vec<u8>, CodecError> {
        from_json::<A::Query>(json)
    }

    fn answer(&self, bytes: &[u8]) -> Result<Value, CodecError> {
        to_json::<A::Answer>(bytes)
    }
}

fn from_json<T: Wire + DeserializeOwned>(json: &[u8]) -> Result<Vec<u8>, CodecError> {
    let value: T = serde_json::from_slice(json).map_err(error)?;
    encode(&value).map(|bytes| bytes.to_vec()).map_err(error)
}

fn to_json<T: Wire + Serialize>(bytes: &[u8]) -> Result<Value, CodecError> {
    let value: T = decode(bytes).map_err(error)?;
    serde_json::to_value(&value).map_err(error)
}

fn error(error: impl std::fmt::Display) -> CodecError {
    CodecError(error.to_string())
}
