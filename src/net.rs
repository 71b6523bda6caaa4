//! Floor 1: the HTTP clients. Endpoints that the operator configured are trusted exactly; addresses that come from rows go
//! through the guard. No other module builds a client.
