// Command td-to-schwab lists the accounts that a login reaches, at Schwab or at TD Ameritrade: one line of main tells
// them apart. Both can be tried without an account:
//
//	brokerauth emulate schwab --listen 127.0.0.1:8002
//	SCHWAB_BASE_URL=http://127.0.0.1:8002 SCHWAB_APP_KEY=key SCHWAB_APP_SECRET=secret go run ./examples/td-to-schwab
package main

import (
	"context"
	"fmt"
	"io"
	"log"
	"os"
	"time"

	"github.com/brokerauth/brokerauth"
	"github.com/brokerauth/brokerauth/flows"
	"github.com/brokerauth/brokerauth/providers/schwab"
	"github.com/brokerauth/brokerauth/providers/tdameritrade"
	"github.com/brokerauth/brokerauth/storage/disk"
)

func main() {
	log.SetFlags(0)
	app, path, err := newSchwab() // it was: newTDAmeritrade()
	if err == nil {
		err = accounts(context.Background(), app, path)
	}
	if err != nil {
		log.Fatal(err)
	}
}

// newSchwab returns Schwab, and where its API lists accounts.
func newSchwab() (app brokerauth.Provider, path string, err error) {
	app, err = schwab.New(schwab.Config{
		AppKey:      os.Getenv("SCHWAB_APP_KEY"),
		AppSecret:   os.Getenv("SCHWAB_APP_SECRET"),
		CallbackURL: setting("SCHWAB_CALLBACK_URL", "https://127.0.0.1:8182"),
		BaseURL:     os.Getenv("SCHWAB_BASE_URL"), // empty: Schwab itself
	})
	return app, "/trader/v1/accounts/accountNumbers", err
}

// newTDAmeritrade returns TD Ameritrade, which is there only as an emulated one, and where its API listed accounts.
func newTDAmeritrade() (app brokerauth.Provider, path string, err error) {
	app, err = tdameritrade.New(tdameritrade.Config{
		ClientID:    os.Getenv("TD_CLIENT_ID"),
		CallbackURL: setting("TD_CALLBACK_URL", "http://localhost:8080"),
		BaseURL:     os.Getenv("TD_BASE_URL"),
	})
	return app, "/v1/accounts", err
}

func setting(name, otherwise string) string {
	if value := os.Getenv(name); value != "" {
		return value
	}
	return otherwise
}

// accounts prints what the API says at path. It asks a person to log in only if the login ends within twelve hours.
func accounts(ctx context.Context, app brokerauth.Provider, path string) error {
	store, err := disk.New("") // as does: brokerauth login schwab --store disk
	if err != nil {
		return err
	}
	session := &brokerauth.Session{Provider: app, Store: store}
	defer session.Close()
	if err := session.Ensure(ctx, flows.Auto(nil), 12*time.Hour); err != nil {
		return err
	}
	resp, err := session.Client(nil).Get(app.Info().BaseURL + path)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		return err
	}
	fmt.Println(resp.Status, string(body))
	return nil
}

// The line of main may name either.
var _ = newTDAmeritrade
