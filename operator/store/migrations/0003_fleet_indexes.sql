-- Indexes over the columns of the migration before: CockroachDB wants them in a transaction of their own.

CREATE INDEX sessions_live_by_runner ON sessions (runner) WHERE sandbox IS NOT NULL;
CREATE INDEX sessions_reserved_by_runner ON sessions (runner, reserved_until) WHERE reserved_until IS NOT NULL;
