package main

import (
	"cmp"
	"fmt"
	"strings"

	"github.com/brokerauth/brokerauth"
	"github.com/brokerauth/brokerauth/providers/schwab"
	"github.com/brokerauth/brokerauth/providers/tastytrade"
	"github.com/brokerauth/brokerauth/providers/tdameritrade"
)

// broker is what the command needs to know of a broker.
type broker struct {
	name     string
	prefix   string // of its settings' names
	settings []setting
	// open makes the provider of the settings' values, which get returns. Its error names all that is wrong with them.
	open func(get func(name string) string) (brokerauth.Provider, error)
	// kept makes the provider for a grant that is stored instead of set; nil: the broker has a login page. One with grants
	// has a login page where the settings have a callback URL.
	kept func(get func(name string) string) (brokerauth.Provider, error)
	// afterLogin is what a person should know after a login.
	afterLogin string
	// stuck tells what the login page may have shown, and the remedies, for a person who did not come back from it.
	stuck   string
	endless bool // its logins have no end
	// guide is the page of the docs that tells how to set it up.
	guide string
	// products are what an app may have or lack, and lacking is what to do about one that it lacks.
	products []product
	lacking  string
}

// seeGuide is where the docs tell how to set b up.
func (b broker) seeGuide() string { return docs + cmp.Or(b.guide, "troubleshooting.md") }

// docs is where the project's guides stand, for those who have only the command.
const docs = "https://github.com/brokerauth/brokerauth/blob/main/docs/"

// setting is a setting of a broker's.
type setting struct {
	name     string
	what     string
	secret   bool   // typed without echo
	optional bool   // it may be left out
	sample   string // a value that no broker refuses for its form; where it is also the usual one, people are told so
	usual    bool
	lengths  []int // of the values that are known; empty: any
	grant    bool  // it is a grant, which tells what it is
}

// baseURL ends the name of the setting that moves a broker elsewhere.
const baseURL = "_BASE_URL"

// brokers returns all that the command knows.
func brokers() []broker {
	return []broker{{
		name:   "schwab",
		prefix: "SCHWAB",
		settings: []setting{
			{name: "SCHWAB_APP_KEY", what: "the app key from developer.schwab.com", sample: "key", lengths: []int{32, 48}},
			{name: "SCHWAB_APP_SECRET", what: "the app's secret", sample: "secret", secret: true, lengths: []int{16, 64}},
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
		// As the users of schwab-py and Schwabdev met it.
		stuck: `What did Schwab's page say?
  Access Denied, 4001, Session rejected, assertion_rejected, 401
      the app is not "Ready For Use" yet, or its callback URL is not SCHWAB_CALLBACK_URL to the letter
  the login form, again and again
      the portal's password was typed, not the brokerage account's; or the callback URL differs in upper and lower case
  a page with the error 500
      the account is of a type that the API does not serve
`,
		guide:    "setup-schwab.md",
		products: []product{{"trader", "/trader/v1/accounts/accountNumbers"}, {"market data", "/marketdata/v1/markets?markets=equity"}},
		lacking: "see at developer.schwab.com whether the app has \"Accounts and Trading Production\" and \"Market Data Production\", " +
			"and its status is \"Ready For Use\", which takes days after every change",
	}, {
		name:   "tdameritrade",
		prefix: "TD",
		settings: []setting{
			{name: "TD_CLIENT_ID", what: "the app's consumer key", sample: "key"},
			{name: "TD_CALLBACK_URL", what: "the app's callback URL to the letter", sample: "http://localhost:8080", usual: true},
		},
		open: func(get func(string) string) (brokerauth.Provider, error) {
			return tdameritrade.New(tdameritrade.Config{
				ClientID:    get("TD_CLIENT_ID"),
				CallbackURL: get("TD_CALLBACK_URL"),
				BaseURL:     get("TD_BASE_URL"),
			})
		},
		guide:    "porting-td-to-schwab.md",
		products: []product{{"accounts", "/v1/accounts"}, {"user principals", "/v1/userprincipals"}},
		lacking:  "log in again with access to the account",
	}, tasty("tastytrade", "TASTY"), tasty("tastytrade-sandbox", "TASTY_SANDBOX")}
}

// tasty is tastytrade or its sandbox, whose settings have names of their own: neither knows the other's grants, and
// both may be in use at once.
func tasty(name, prefix string) broker {
	secret, grant, callback := prefix+"_CLIENT_SECRET", prefix+"_REFRESH_TOKEN", prefix+"_CALLBACK_URL"
	config := func(get func(string) string) tastytrade.Config {
		return tastytrade.Config{ClientID: get(prefix + "_CLIENT_ID"), Sandbox: name != "tastytrade", BaseURL: get(prefix + baseURL)}
	}
	kept := func(get func(string) string) (brokerauth.Provider, error) {
		c := config(get)
		if !c.Sandbox && strings.Contains(c.BaseURL, "//api.cert.tastyworks.com") {
			return nil, fmt.Errorf("%s is the sandbox's: leave it out, and name the broker tastytrade-sandbox", prefix+baseURL)
		}
		return newKeptGrant(c)
	}
	return broker{
		name:   name,
		prefix: prefix,
		settings: []setting{
			{name: secret, what: "the client secret of the OAuth application", secret: true, optional: true},
			{name: grant, what: "the refresh token that Create Grant has shown", secret: true, optional: true, grant: true},
			{name: prefix + "_CLIENT_ID", what: "the application's client id, which only a partner's app needs", optional: true},
			{name: callback, what: "a partner app's redirect URI to the letter; without it a personal grant is used", optional: true},
		},
		open: func(get func(string) string) (brokerauth.Provider, error) {
			c := config(get)
			c.ClientSecret, c.Grant, c.CallbackURL = get(secret), get(grant), get(callback)
			if c.CallbackURL != "" {
				if c.Grant != "" {
					return nil, fmt.Errorf("%s is a partner app's, and %s a personal grant: leave one of them out", callback, grant)
				}
				return tastytrade.NewPartner(c)
			}
			stored, err := kept(get)
			switch {
			case err != nil || c.ClientSecret == "" && c.Grant == "":
				return stored, err
			case c.ClientSecret == "" || c.Grant == "":
				return nil, fmt.Errorf("only one of %s and %s is set: set both, or neither and run: brokerauth login %s", secret, grant, name)
			}
			return tastytrade.New(c)
		},
		kept:     kept,
		endless:  true,
		guide:    "setup-tastytrade.md",
		products: []product{{"accounts", "/customers/me/accounts"}, {"quotes", "/api-quote-tokens"}},
		lacking: "make a grant with the scope read at https://my.tastytrade.com, which needs two-factor authentication on the account; " +
			"quotes are for customers only",
	}
}
