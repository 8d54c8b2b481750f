-- How long sessions of an agent may be without a turn before they sleep: beside the versions, because a change makes none. NULL: as
-- their runner has it.
ALTER TABLE agents ADD COLUMN idle_seconds BIGINT;
