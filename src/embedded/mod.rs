//! Floor 2: the pinned downloads (Postgres with pgvector, MiniLM, libpdfium) and the private Postgres of demo and tests.
