// Package databases tests the stores that hosts share against real servers: PostgreSQL, SQLite and Redis. It is a module
// of its own, so that no other one requires their drivers for its tests.
package databases
