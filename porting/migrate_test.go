package porting_test

import (
	"encoding/json"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/brokerauth/brokerauth/porting"
	"github.com/brokerauth/brokerauth/providers/schwab"
)

// todos are the topics with something left to do.
func todos(findings []porting.Finding) (topics []string) {
	for _, f := range findings {
		if f.Todo != "" {
			topics = append(topics, f.Topic)
		}
	}
	return topics
}

func TestMigrateTodo(t *testing.T) {
	done := func(change ...string) map[string]string {
		env := map[string]string{
			"SCHWAB_APP_KEY": "newkey", "SCHWAB_APP_SECRET": "emulated.secret", "SCHWAB_CALLBACK_URL": "https://127.0.0.1:8080",
			"TD_CONSUMER_KEY": "OLDKEY@AMER.OAUTHAP", "TD_CALLBACK_URL": "http://localhost:8080",
		}
		for i := 0; i < len(change); i += 2 {
			env[change[i]] = change[i+1]
		}
		return env
	}
	for _, c := range []struct {
		name  string
		env   map[string]string
		state []byte
		want  []string
	}{
		{"nothing known", nil, nil, []string{"registration", "client id", "client secret", "callback URL"}},
		{"old settings only", map[string]string{"TD_CLIENT_ID": "OLDKEY"}, nil, []string{"registration", "client id", "client secret", "callback URL"}},
		{"all done", done(), nil, nil},
		{"the old key again", done("SCHWAB_APP_KEY", "oldkey"), nil, []string{"registration", "client id"}},
		{"the ending again", done("SCHWAB_APP_KEY", "newkey@amer.oauthap"), nil, []string{"registration", "client id"}},
		{"no secret", done("SCHWAB_APP_SECRET", ""), nil, []string{"client secret"}},
		{"the old callback again", done("SCHWAB_CALLBACK_URL", "http://localhost:8080"), nil, []string{"callback URL"}},
		{"localhost", done("SCHWAB_CALLBACK_URL", "https://localhost:8080"), nil, []string{"callback URL"}},
		{"a list", done("SCHWAB_CALLBACK_URL", "https://127.0.0.1:1,https://127.0.0.1:2"), nil, []string{"callback URL"}},
		{"old file", done(), sample(t, "pytd.json"), []string{"token file"}},
		{"pickle", done(), sample(t, "tda-api.pickle"), []string{"token file"}},
		{"Schwab's file", done(), sample(t, "schwab-py.json"), []string{"token file"}},
		{"neither True nor False", done("TD_STORE_TOKENS", "no"), nil, []string{"where tokens are kept"}},
		{"in memory", done("TD_STORE_TOKENS", "False"), nil, []string{"where tokens are kept"}},
		{"in memory, and a store is named", done("TD_STORE_TOKENS", "False", "BROKERAUTH_STORE", "disk"), nil, nil},
	} {
		t.Run(c.name, func(t *testing.T) {
			findings := porting.Migrate(c.env, c.state)
			if diff := cmp.Diff(c.want, todos(findings)); diff != "" {
				t.Error(diff)
			}
			text, err := json.Marshal(findings)
			if err != nil {
				t.Fatal(err)
			}
			for _, secret := range []string{"emulated", "OLDKEY", "oldkey", "newkey"} {
				if strings.Contains(string(text), secret) {
					t.Errorf("the findings give %q away", secret)
				}
			}
		})
	}
}

// What Migrate works out, Schwab's provider takes.
func TestMigrateCallback(t *testing.T) {
	const usual = "https://127.0.0.1:8182"
	for td, want := range map[string]string{
		"":                                                usual,
		"http://localhost:8080":                           "https://127.0.0.1:8080",
		"http://localhost":                                usual,
		"http://localhost/":                               usual,
		"http://localhost:80/back/":                       usual + "/back",
		"HTTPS://LocalHost:8443/Back":                     "https://127.0.0.1:8443/Back",
		"https://127.0.0.1:9000/":                         "https://127.0.0.1:9000",
		"http://[::1]:9000":                               "https://127.0.0.1:9000",
		"https://app.localhost:9000":                      "https://127.0.0.1:9000",
		"http://example.com/cb":                           "https://example.com/cb",
		"http://example.com:80/cb":                        "https://example.com/cb",
		"https://a.example/x,https://b.exa":               "https://a.example/x",
		"https://user:emulated@example.com":               "https://example.com",
		"https://example.com/?k=emulated":                 "https://example.com",
		"urn:ietf:wg:oauth:2.0:oob":                       usual,
		"localhost:8080":                                  usual,
		"bad%zz":                                          usual,
		"https://example.com/" + strings.Repeat("x", 300): usual,
	} {
		for _, f := range porting.Migrate(map[string]string{"TD_CALLBACK_URL": td}, nil) {
			if f.Setting != "SCHWAB_CALLBACK_URL" {
				continue
			}
			if none := strings.Contains(f.TD, "TD_CALLBACK_URL"); none != (td == "localhost:8080" || strings.HasPrefix(td, "urn:") || td == "bad%zz") {
				t.Errorf("of %q Migrate says %q", td, f.TD)
			}
			if f.Value != want {
				t.Errorf("for %q Migrate works out %q, want %q", td, f.Value, want)
			}
			if _, err := schwab.New(schwab.Config{AppKey: "key", AppSecret: "secret", CallbackURL: f.Value}); err != nil {
				t.Errorf("for %q: %v", td, err)
			}
		}
	}
}

func TestMigrateSettings(t *testing.T) {
	for _, c := range []struct {
		env            map[string]string
		setting, value string
	}{
		{map[string]string{"TD_STORE_TOKENS": "False", "TD_CONFIG_DIR": "td"}, "BROKERAUTH_STORE", ""},
		{map[string]string{"TD_CONFIG_DIR": "td"}, "BROKERAUTH_STORE", "disk:" + filepath.Join("td", "brokerauth")},
		{map[string]string{"TD_STORE_TOKENS": "True"}, "BROKERAUTH_STORE", ""},
		{map[string]string{"TD_LOG_LEVEL": "DEBUG"}, "BROKERAUTH_LOG", "debug"},
		{map[string]string{"TD_BASE_URL": "http://127.0.0.1:1", "SCHWAB_BASE_URL": "http://127.0.0.1:2"}, "SCHWAB_BASE_URL", "http://127.0.0.1:2"},
		{map[string]string{"SCHWAB_CALLBACK_URL": "https://127.0.0.1"}, "SCHWAB_CALLBACK_URL", "https://127.0.0.1"},
	} {
		got := ""
		for _, f := range porting.Migrate(c.env, nil) {
			if f.Setting == c.setting {
				got = f.Value
			}
		}
		if got != c.value {
			t.Errorf("Migrate(%v) works out %s=%q, want %q", c.env, c.setting, got, c.value)
		}
	}
}

func TestSchwabAddress(t *testing.T) {
	const base = "https://api.schwabapi.com"
	for td, want := range map[string]string{
		"https://auth.tdameritrade.com/auth?client_id=x":                             base + "/v1/oauth/authorize",
		"https://api.tdameritrade.com/v1/oauth2/token":                               base + "/v1/oauth/token",
		"https://api.tdameritrade.com/v1":                                            base,
		"https://api.tdameritrade.com/v1/accounts":                                   base + "/trader/v1/accounts",
		"https://api.tdameritrade.com/v1/accounts/123456789?fields=orders":           base + "/trader/v1/accounts/{accountHash}",
		"https://API.tdameritrade.com/v1/accounts/123456789/orders/77/":              base + "/trader/v1/accounts/{accountHash}/orders/77",
		"https://api.tdameritrade.com/v1/accounts/123456789/transactions":            base + "/trader/v1/accounts/{accountHash}/transactions",
		"https://api.tdameritrade.com/v1/userprincipals?fields=x":                    base + "/trader/v1/userPreference",
		"https://api.tdameritrade.com/v1/marketdata/quotes?symbol=A&apikey=K":        base + "/marketdata/v1/quotes",
		"https://api.tdameritrade.com/v1/marketdata/%24SPX.X/movers":                 base + "/marketdata/v1/movers/%24SPX.X",
		"https://api.tdameritrade.com/v1/marketdata/AAPL/pricehistory?periodType=x":  base + "/marketdata/v1/pricehistory?symbol=AAPL",
		"https://api.tdameritrade.com/v1/marketdata/EQUITY/hours":                    base + "/marketdata/v1/markets/EQUITY",
		"https://api.tdameritrade.com/v1/accounts/123456789/savedorders":             "",
		"https://api.tdameritrade.com/v1/accounts/123456789/watchlists":              "",
		"https://api.tdameritrade.com/v1/accounts/watchlists":                        "",
		"https://apis.tdameritrade.com/apps/100/AuthTokenLogIn":                      "",
		"https://api.tdameritrade.com/v1/accounts/123456789/orders/1/2/3/4/5/6/7/8/": "",
	} {
		got, ok := porting.SchwabAddress(td)
		if !ok || got != want {
			t.Errorf("SchwabAddress(%q) = %q, %t; want %q", td, got, ok, want)
		}
	}
	for _, other := range []string{"https://api.schwabapi.com/v1/accounts", "https://tdameritrade.com.example/v1", "", ":", "/v1/accounts"} {
		if got, ok := porting.SchwabAddress(other); ok {
			t.Errorf("SchwabAddress(%q) = %q, want none", other, got)
		}
	}
}
