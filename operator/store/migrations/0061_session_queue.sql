-- Messages that wait for their turn. Times are the database's own.
CREATE TABLE session_queue (
    tenant     TEXT   NOT NULL,
    session    TEXT   NOT NULL,
    -- The turn of the first attempt.
    id         TEXT   NOT NULL,
    position   BIGINT NOT NULL,
    state      TEXT   NOT NULL,
    attempt    BIGINT NOT NULL,
    retries    BIGINT NOT NULL,
    -- The turn of the current attempt, and the last epoch whose bridge can be given it.
    turn       TEXT   NOT NULL,
    fence      BIGINT NOT NULL,
    version    BIGINT NOT NULL,
    -- When it may be tried, or when the claim on it is over.
    due_at     BIGINT NOT NULL,
    created_at BIGINT NOT NULL,
    -- NULL while it waits or is being begun.
    settled_at BIGINT,
    preview    TEXT   NOT NULL,
    error      TEXT,
    size       BIGINT NOT NULL,
    -- The message as JSON; empty once it is over.
    message    BYTEA  NOT NULL,
    PRIMARY KEY (session, id),
    FOREIGN KEY (tenant, session) REFERENCES sessions (tenant, id)
);

-- A place is given once, also where two are added at the same moment.
CREATE UNIQUE INDEX session_queue_in_order ON session_queue (session, position);
CREATE INDEX session_queue_open ON session_queue (session, position) WHERE settled_at IS NULL;
