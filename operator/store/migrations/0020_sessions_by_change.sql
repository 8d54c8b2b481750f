-- What the operator asks for every second: the sessions that changed since.
CREATE INDEX sessions_by_change ON sessions (last_active_at, id);
