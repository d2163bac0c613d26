package main

import (
	"github.com/brokerauth/brokerauth"
	"github.com/brokerauth/brokerauth/providers/schwab"
)

// broker is what the command needs to know of a broker.
type broker struct {
	name     string
	settings []setting
	// open makes the provider of the settings' values, which get returns. Its error names all that is wrong with them.
	open func(get func(name string) string) (brokerauth.Provider, error)
	// afterLogin is what a person should know after a login.
	afterLogin string
}

// setting is a setting that a broker needs.
type setting struct {
	name   string
	what   string
	secret bool   // typed without echo
	sample string // a value that no broker refuses for its form; where it is also the usual one, people are told so
	usual  bool
}

// baseURL ends the name of the setting that moves a broker elsewhere.
const baseURL = "_BASE_URL"

// brokers returns all that the command knows.
func brokers() []broker {
	return []broker{{
		name: "schwab",
		settings: []setting{
			{name: "SCHWAB_APP_KEY", what: "the app key from developer.schwab.com", sample: "key"},
			{name: "SCHWAB_APP_SECRET", what: "the app's secret", sample: "secret", secret: true},
			{name: "SCHWAB_CALLBACK_URL", what: "the app's callback URL to the letter", sample: "https://127.0.0.1:8182", usual: true},
		},
		open: func(get func(string) string) (brokerauth.Provider, error) {
			return schwab.New(schwab.Config{
				AppKey:      get("SCHWAB_APP_KEY"),
				AppSecret:   get("SCHWAB_APP_SECRET"),
				CallbackURL: get("SCHWAB_CALLBACK_URL"),
				BaseURL:     get("SCHWAB_BASE_URL"),
			})
		},
		afterLogin: "Earlier logins of this app, on this or any other machine, have ended: Schwab keeps one.",
	}}
}
