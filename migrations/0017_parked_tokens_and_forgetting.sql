-- A parked vector was charged by our own count of its tokens, its call by the provider's, which may be another: the ledger and the calls
-- could not be reconciled. What was paid is kept beside what was bought. Null of those parked before.
alter table gristmill.vector_cache add column tokens bigint check (tokens >= 0);
