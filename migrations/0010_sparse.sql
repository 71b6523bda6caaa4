-- BGE-M3 gives weights of tokens beside each vector. They are paid for together, so they are kept together.
alter table gristmill.vector_cache add column sparse bytea;
