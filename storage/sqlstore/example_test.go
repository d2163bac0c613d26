package sqlstore_test

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"errors"
	"fmt"

	"github.com/brokerauth/brokerauth"
	"github.com/brokerauth/brokerauth/storage/sqlstore"
)

// noDriver stands for github.com/jackc/pgx/v5/stdlib, which a program imports.
type noDriver struct{}

func (noDriver) Open(string) (driver.Conn, error) { return nil, errors.New("there is no server") }

func init() { sql.Register("pgx", noDriver{}) }

func Example() {
	db, err := sql.Open("pgx", "postgres://logins@db.example/logins?sslmode=verify-full") // the password from PGPASSWORD, or a file
	if err != nil {
		fmt.Println(err)
		return
	}
	defer db.Close()
	store, err := sqlstore.New(db, sqlstore.PostgreSQL) // several Sessions, processes and hosts may share it
	if err != nil {
		fmt.Println(err)
		return
	}
	if err := store.Create(context.Background()); errors.Is(err, brokerauth.ErrUnavailable) {
		fmt.Println("the database is not there")
	}
	fmt.Println(store.Where(brokerauth.Key{Provider: "schwab", Identity: "3fa8", Profile: "default"}))
	// Output:
	// the database is not there
	// row schwab.3fa8.default of the PostgreSQL table brokerauth_logins
}
