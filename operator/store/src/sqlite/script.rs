//! Statements that go to the database as one call.
//!
//! sqlx runs SQLite on a thread of its own, and a call is two changes of threads, which cost more than most statements do. What
//! a turn writes again and again is therefore one text of several statements, its `BEGIN` and `COMMIT` among them.

use std::fmt::{self, Write};

use futures::StreamExt;
use sqlx::{
    Arguments, AssertSqlSafe, Either, Encode, Executor, Sqlite, SqliteConnection, Type,
    error::BoxDynError,
    sqlite::{SqliteArguments, SqliteRow},
};

use super::writer::Aborted;
use crate::fault::Fault;

/// Scripts with more statements are compiled for each use: what is kept is bounded in number, and those are of many shapes.
const MAX_KEPT_STATEMENTS: usize = 6;

/// A text of several statements, and their parameters, which all of them share by number.
#[derive(Default)]
pub(super) struct Script {
    text: String,
    statements: usize,
    arguments: SqliteArguments,
    /// The first parameter that could not be encoded.
    refused: Option<BoxDynError>,
}

/// A parameter's place in the text.
#[derive(Clone, Copy)]
pub(super) struct Parameter(usize);

impl fmt::Display for Parameter {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "${}", self.0)
    }
}

impl Script {
    /// Adds a value.
    pub(super) fn bind<'t, T: Encode<'t, Sqlite> + Type<Sqlite> + 't>(&mut self, value: T) -> Parameter {
        if let Err(error) = self.arguments.add(value) {
            self.refused.get_or_insert(error);
        }
        Parameter(self.arguments.len())
    }

    /// Adds a statement. Its text is ours: what comes from elsewhere is a parameter.
    pub(super) fn push(&mut self, statement: fmt::Arguments<'_>) {
        self.statements += 1;
        // Writing to a string does not fail.
        let _ = write!(self.text, "{statement};");
    }

    /// Runs it within the transaction that there is, and gives all rows.
    pub(super) async fn run(self, connection: &mut SqliteConnection) -> Result<Vec<SqliteRow>, Fault> {
        self.fetch(connection).await.map_err(|(_, fault)| fault)
    }

    /// Runs it as a transaction of its own, and gives all rows; committed when this returns.
    pub(super) async fn run_as_transaction(self, connection: &mut SqliteConnection) -> Result<Vec<SqliteRow>, Aborted> {
        let before_commit = self.statements + 1;
        let framed = Self { text: format!("BEGIN IMMEDIATE;{}COMMIT", self.text), ..self };
        framed.fetch(connection).await.map_err(|(done, fault)| {
            if done == before_commit { Aborted::at_commit(fault) } else { Aborted::before_commit(fault) }
        })
    }

    /// Gives all rows, or how many statements were done before the one that failed.
    async fn fetch(self, connection: &mut SqliteConnection) -> Result<Vec<SqliteRow>, (usize, Fault)> {
        if let Some(error) = self.refused {
            return Err((0, sqlx::Error::Encode(error).into()));
        }
        let query = sqlx::query_with(AssertSqlSafe(self.text), self.arguments)
            .persistent(self.statements <= MAX_KEPT_STATEMENTS);
        let (mut rows, mut done) = (Vec::new(), 0);
        let mut results = connection.fetch_many(query);
        while let Some(result) = results.next().await {
            match result {
                Ok(Either::Left(_)) => done += 1,
                Ok(Either::Right(row)) => rows.push(row),
                Err(error) => return Err((done, error.into())),
            }
        }
        Ok(rows)
    }
}
