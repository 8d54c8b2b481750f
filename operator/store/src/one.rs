//! Writes that are one statement, whose rows say what it did.

use std::marker::PhantomData;

use crate::{
    fault::Fault,
    sql::{Columns, Sql, Statement},
    store::Write,
};

/// What a row that a statement gives is read as.
pub(crate) trait ReadRow: Send + Sync + 'static {
    /// What it is.
    type Output: Send + Sync + 'static;

    /// Reads it.
    fn read(row: &impl Columns) -> Result<Self::Output, Fault>;
}

/// Rows that are only counted.
pub(crate) struct Counted;

impl ReadRow for Counted {
    type Output = ();

    fn read(_: &impl Columns) -> Result<(), Fault> {
        Ok(())
    }
}

/// One statement, which may be repeated where it is unknown whether it was carried out.
pub(crate) struct One<R> {
    statement: Statement,
    rows: PhantomData<R>,
}

impl<R> One<R> {
    /// A statement whose `RETURNING` gives rows of this kind.
    pub(crate) fn new(statement: Statement) -> Self {
        Self { statement, rows: PhantomData }
    }
}

impl<R: ReadRow> Write for One<R> {
    type Output = Vec<R::Output>;

    const IS_ONE_STATEMENT: bool = true;
    const MAY_REPEAT: bool = true;

    async fn run<S: Sql>(&self, sql: &mut S) -> Result<Self::Output, Fault> {
        sql.rows(self.statement.clone()).await?.iter().map(R::read).collect()
    }
}
