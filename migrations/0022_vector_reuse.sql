-- A pipeline may ask that equal texts of one tenant and model are paid once. Such vectors are in the ledger already: they must not be
-- taken for parked ones, whose job is still to be charged for them.
alter table gristmill.vector_cache add column reusable boolean not null default false;
