-- What many coordinators share: the runners, the coordinators, sandbox pods, and encrypted credentials. New tables, and columns
-- that may be NULL: the release before goes on beside this one.

-- Runners serve every tenant. Times are the database's own.
CREATE TABLE runners (
    name             TEXT   NOT NULL PRIMARY KEY,
    incarnation      TEXT   NOT NULL,
    -- The life before: it does not come back.
    previous         TEXT,
    address          TEXT   NOT NULL,
    pool             TEXT   NOT NULL,
    node             TEXT   NOT NULL,
    release          TEXT   NOT NULL,
    capacity         BIGINT NOT NULL,
    load             TEXT   NOT NULL,
    cordoned         BIGINT NOT NULL,
    ready            BIGINT NOT NULL,
    version          BIGINT NOT NULL,
    heard_at         BIGINT NOT NULL,
    restarting_until BIGINT
);

CREATE TABLE coordinators (
    id      TEXT   NOT NULL PRIMARY KEY,
    seen_at BIGINT NOT NULL
);

-- The runner that has the session's sandbox, its files, or a place for it until a time.
ALTER TABLE sessions ADD COLUMN runner TEXT;
ALTER TABLE sessions ADD COLUMN reserved_until BIGINT;
-- The stored credential for the model.
ALTER TABLE sessions ADD COLUMN credential TEXT;

CREATE TABLE sandboxes (
    id                 TEXT   NOT NULL PRIMARY KEY,
    tenant             TEXT   NOT NULL,
    pod                TEXT   NOT NULL,
    pod_uid            TEXT,
    agent              TEXT   NOT NULL,
    agent_version      BIGINT NOT NULL,
    pool               TEXT   NOT NULL,
    session            TEXT,
    state              TEXT   NOT NULL,
    runner             TEXT,
    runner_incarnation TEXT,
    node               TEXT,
    created_at         BIGINT NOT NULL,
    changed_at         BIGINT NOT NULL
);

CREATE INDEX sandboxes_by_pod ON sandboxes (tenant, pod);
CREATE INDEX sandboxes_warm ON sandboxes (tenant, agent, agent_version) WHERE state = 'warm';
CREATE INDEX sandboxes_claimed ON sandboxes (runner) WHERE state = 'claimed';
-- A session has one sandbox.
CREATE UNIQUE INDEX sandboxes_by_session ON sandboxes (session) WHERE session IS NOT NULL AND state <> 'deleting';

-- sealed: what was encrypted, with the nonce and what names the key.
CREATE TABLE credentials (
    id         TEXT   NOT NULL PRIMARY KEY,
    tenant     TEXT   NOT NULL,
    name       TEXT   NOT NULL,
    kind       TEXT   NOT NULL,
    created_at BIGINT NOT NULL,
    sealed     BYTEA  NOT NULL,
    UNIQUE (tenant, name)
);
