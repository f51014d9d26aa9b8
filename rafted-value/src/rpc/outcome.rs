//! Outcomes of commands and queries as answers.

use bytes::Bytes;

use super::*;

impl From<Result<Bytes, CommandError>> for Answer {
    fn from(result: Result<Bytes, CommandError>) -> Self {
        match result {
            Ok(reply) => Self::Reply(reply),
            Err(CommandError::NotHappened(reason)) => Self::NotHappened(reason),
            Err(CommandError::Unknown(reason)) => Self::Unknown(reason),
            Err(CommandError::Failed(message)) => Self::Failed(message),
        }
    }
}

impl From<Result<Bytes, QueryError>> for Answer {
    fn from(result: Result<Bytes, QueryError>) -> Self {
        match result {
            Ok(reply) => Self::Reply(reply),
            Err(QueryError::NotHappened(reason)) => Self::NotHappened(reason),
            Err(QueryError::Failed(message)) => Self::Failed(message),
        }
    }
}
