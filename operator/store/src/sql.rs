//! Statements that every database of the store runs, their parameters, and the rows that they give.
//!
//! What is written once for all databases is written with these; what has to be fast, or is done differently, is the databases'
//! own.

use std::borrow::Cow;

use bytes::Bytes;
use sqlx::{
    Arguments, AssertSqlSafe, Database, Encode, IntoArguments, Type, database::HasStatementCache, query::Query,
};

use crate::fault::Fault;

/// A parameter of a statement.
#[derive(Debug, Clone)]
enum Value {
    Text(Option<String>),
    Integer(i64),
    Bytes(Bytes),
}

/// A statement with its parameters, `$1` and so on in the order in which they are added.
#[derive(Debug, Clone)]
pub(crate) struct Statement {
    text: Cow<'static, str>,
    /// Whether the text is used again and again.
    is_kept: bool,
    values: Vec<Value>,
}

impl Statement {
    /// A statement. Its text is ours: what comes from elsewhere is a parameter.
    pub(crate) fn new(text: impl Into<Cow<'static, str>>) -> Self {
        let text = text.into();
        Self { is_kept: matches!(text, Cow::Borrowed(_)), text, values: Vec::new() }
    }

    /// A statement with the database's time in place of each `{now}`.
    pub(crate) fn at(now: &str, text: &'static str) -> Self {
        Self::kept(text.replace("{now}", now))
    }

    /// A statement whose text is put together, but is one of a few.
    pub(crate) fn kept(text: String) -> Self {
        Self { text: text.into(), is_kept: true, values: Vec::new() }
    }

    /// Adds text.
    pub(crate) fn text(self, value: impl ToString) -> Self {
        self.optional_text(Some(value))
    }

    /// Adds text or `NULL`.
    pub(crate) fn optional_text(mut self, value: Option<impl ToString>) -> Self {
        self.values.push(Value::Text(value.map(|value| value.to_string())));
        self
    }

    /// Adds a number.
    pub(crate) fn integer(mut self, value: i64) -> Self {
        self.values.push(Value::Integer(value));
        self
    }

    /// Adds bytes.
    pub(crate) fn bytes(mut self, value: Bytes) -> Self {
        self.values.push(Value::Bytes(value));
        self
    }

    /// As the database's own query. One whose text is made for a single use is not kept by the connection.
    pub(crate) fn query<DB>(self) -> Result<Query<'static, DB, DB::Arguments>, Fault>
    where
        DB: Database + HasStatementCache,
        DB::Arguments: Arguments<Database = DB> + IntoArguments<DB>,
        Option<String>: Encode<'static, DB> + Type<DB>,
        Vec<u8>: Encode<'static, DB> + Type<DB>,
        i64: Encode<'static, DB> + Type<DB>,
    {
        let mut arguments = DB::Arguments::default();
        for value in self.values {
            let added = match value {
                Value::Text(text) => arguments.add(text),
                Value::Integer(number) => arguments.add(number),
                Value::Bytes(bytes) => arguments.add(Vec::from(bytes)),
            };
            added.map_err(sqlx::Error::Encode)?;
        }
        Ok(sqlx::query_with(AssertSqlSafe(self.text), arguments).persistent(self.is_kept))
    }
}

/// Who runs statements: a connection, within a transaction or not, or whoever finds one.
pub(crate) trait Sql: Send {
    /// What it gives.
    type Row: Columns + Send + Sync;

    /// Runs a statement; gives how many rows it changed.
    fn execute(&mut self, statement: Statement) -> impl Future<Output = Result<u64, Fault>> + Send;

    /// Runs a statement; gives its rows.
    fn rows(&mut self, statement: Statement) -> impl Future<Output = Result<Vec<Self::Row>, Fault>> + Send;

    /// Runs a statement; gives its first row.
    fn row(&mut self, statement: Statement) -> impl Future<Output = Result<Option<Self::Row>, Fault>> + Send {
        async move { Ok(self.rows(statement).await?.into_iter().next()) }
    }
}

/// A row, as the few types that the schema has.
pub(crate) trait Columns {
    /// A column of text.
    fn text(&self, column: &str) -> Result<Option<String>, Fault>;

    /// A column of numbers, of any width.
    fn integer(&self, column: &str) -> Result<Option<i64>, Fault>;

    /// A column of bytes.
    fn bytes(&self, column: &str) -> Result<Vec<u8>, Fault>;
}
