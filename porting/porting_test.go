package porting_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/brokerauth/brokerauth"
	"github.com/brokerauth/brokerauth/conformance/emulator"
	"github.com/brokerauth/brokerauth/porting"
	"github.com/brokerauth/brokerauth/storage/memory"
)

// The samples are of a login at loggedIn whose access token was refreshed an hour later.
var (
	loggedIn  = time.Date(2026, 6, 1, 12, 0, 0, 0, time.UTC)
	refreshed = loggedIn.Add(time.Hour)
)

const (
	access  = "emulated.access"
	refresh = "emulated.refresh"
	fernet  = "ZW11bGF0ZWQua2V5LmVtdWxhdGVkLmtleS5lbXVsYXQ="
)

// at runs test when the clock shows now.
func at(t *testing.T, now time.Time, test func(t *testing.T)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		time.Sleep(time.Until(now))
		test(t)
	})
}

func sample(t testing.TB, name string) []byte {
	t.Helper()
	data, err := os.ReadFile(filepath.Join("testdata", name))
	if err != nil {
		t.Fatal(err)
	}
	return data
}

// full is the login of most samples.
func full(change func(*brokerauth.Token)) *brokerauth.Token {
	t := &brokerauth.Token{
		AccessToken: access, TokenType: "Bearer", RefreshToken: refresh,
		Issued: refreshed, Expiry: refreshed.Add(30 * time.Minute),
		LoggedInAt: loggedIn, LoginBy: loggedIn.AddDate(0, 0, 7),
		Extra: map[string]string{"scope": "api"},
	}
	if change != nil {
		change(t)
	}
	return t
}

var samples = []struct {
	file             string
	options          *porting.Options
	format, provider string
	token            *brokerauth.Token
	notes            int
}{
	{file: "schwab-py.json", format: "schwab-py or schwab-go", provider: "schwab", token: full(nil)},
	{file: "schwab-go.json", format: "schwab-py or schwab-go", provider: "schwab", token: full(nil)},
	{file: "neither.json", options: &porting.Options{Provider: "schwab"}, format: "schwab-py or tda-api", provider: "schwab",
		token: full(func(t *brokerauth.Token) { t.Extra = nil })},
	{file: "neither.json", options: &porting.Options{Provider: "tdameritrade"}, format: "schwab-py or tda-api",
		provider: "tdameritrade", notes: 1},
	{file: "tda-api.json", format: "tda-api", provider: "tdameritrade", notes: 1},
	{file: "tda-api-raw.json", format: "tda-api, an early version", provider: "tdameritrade", notes: 1},
	{file: "td-ameritrade-python-api.json", format: "td-ameritrade-python-api", provider: "tdameritrade", notes: 1},
	{file: "pytd.json", format: "pyTD", provider: "tdameritrade", notes: 1},
	{file: "pytd-empty.json", format: "pyTD", provider: "tdameritrade", notes: 1},
	{file: "schwabdev-2.json", format: "Schwabdev 2", provider: "schwab", token: full(nil)},
	{file: "schwabdev-2-naive.json", format: "Schwabdev 2", provider: "schwab", notes: 1, token: full(func(t *brokerauth.Token) {
		t.Issued = time.Date(2026, 6, 1, 13, 0, 0, 250e6, time.Local).UTC()
		t.Expiry = t.Issued.Add(30 * time.Minute)
		t.LoggedInAt = time.Date(2026, 6, 1, 12, 0, 0, 0, time.Local).UTC()
		t.LoginBy = t.LoggedInAt.Add(168 * time.Hour)
	})},
	{file: "schwabdev-3.json", format: "Schwabdev 3", provider: "schwab", token: full(nil)},
	{file: "schwabdev-3-encrypted.json", options: &porting.Options{FernetKey: fernet}, format: "Schwabdev 3", provider: "schwab",
		token: full(nil)},
	{file: "schwabdev-3.json", options: &porting.Options{FernetKey: fernet}, format: "Schwabdev 3", provider: "schwab", token: full(nil)},
	{file: "tastytrade.json", format: "tastytrade", provider: "tastytrade", token: &brokerauth.Token{
		AccessToken: access, TokenType: "Bearer", RefreshToken: refresh, Expiry: refreshed.Add(900250 * time.Millisecond),
		Extra: map[string]string{"client_secret": "emulated.secret"},
	}},
	{file: "tastytrade-new.json", format: "tastytrade", provider: "tastytrade-sandbox", token: &brokerauth.Token{
		TokenType: "Bearer", RefreshToken: refresh, Expiry: refreshed.AddDate(0, 0, 1),
		Extra: map[string]string{"client_secret": "emulated.secret"},
	}},
	{file: "tastytrade-11.json", format: "tastytrade", provider: "tastytrade", token: &brokerauth.Token{
		AccessToken: access, TokenType: "Bearer", RefreshToken: refresh, Expiry: refreshed.Add(15 * time.Minute),
		Extra: map[string]string{"client_secret": "emulated.secret"},
	}},
	{file: "trader.json", format: "go-schwab/trader", provider: "schwab", token: full(func(t *brokerauth.Token) { t.Extra = nil })},
	{file: "oauth2.json", options: &porting.Options{Provider: "schwab", LoggedInAt: loggedIn}, format: "golang.org/x/oauth2",
		provider: "schwab", token: full(func(t *brokerauth.Token) { t.Extra, t.Issued = nil, time.Time{} })},
	{file: "oauth2.json", options: &porting.Options{Provider: "schwab"}, format: "golang.org/x/oauth2", provider: "schwab", notes: 1,
		token: full(func(t *brokerauth.Token) {
			t.Extra, t.Issued, t.LoggedInAt, t.LoginBy = nil, time.Time{}, time.Time{}, time.Time{}
		})},
}

func TestReadSamples(t *testing.T) {
	for _, s := range samples {
		t.Run(s.file, func(t *testing.T) {
			at(t, refreshed.AddDate(0, 0, 1), func(t *testing.T) {
				found, err := porting.Read(sample(t, s.file), s.options)
				if err != nil {
					t.Fatal(err)
				}
				if found.Format != s.format || found.Provider != s.provider || len(found.Notes) != s.notes {
					t.Errorf("Read found %s of %s with notes %q, want %s of %s with %d", found.Format, found.Provider, found.Notes,
						s.format, s.provider, s.notes)
				}
				// Tokens print as fingerprints, hence not the difference itself.
				if !cmp.Equal(found.Token, s.token) {
					t.Errorf("Read returned %v\nwant %v", plain(found.Token), plain(s.token))
				}
			})
		})
	}
}

// plain shows all of a token of a sample.
func plain(t *brokerauth.Token) any {
	if t == nil {
		return nil
	}
	type shown brokerauth.Token
	return shown(*t)
}

// A login of each library that moved to Schwab goes on here, and ends when it would have ended there.
func TestReadThenRefresh(t *testing.T) {
	for _, s := range samples {
		if s.provider != "schwab" || strings.Contains(s.file, "encrypted") {
			continue
		}
		t.Run(s.file, func(t *testing.T) {
			at(t, loggedIn, func(t *testing.T) {
				broker := emulator.Schwab(t)
				before := &brokerauth.Session{Provider: broker.Provider(), Store: new(memory.Store)}
				if err := before.Login(t.Context(), broker.Approve); err != nil {
					t.Fatal(err)
				}
				token, err := before.Token(t.Context())
				if err != nil {
					t.Fatal(err)
				}
				data := strings.NewReplacer(access, token.AccessToken, refresh, token.RefreshToken).Replace(string(sample(t, s.file)))

				time.Sleep(24 * time.Hour)
				found, err := porting.Read([]byte(data), s.options)
				if err != nil {
					t.Fatal(err)
				}
				session := &brokerauth.Session{Provider: broker.Provider(), Store: new(memory.Store)}
				defer session.Close()
				if err := session.Save(t.Context(), found.Token); err != nil {
					t.Fatal(err)
				}
				next, err := session.Token(t.Context())
				if err != nil {
					t.Fatal(err)
				}
				if next.AccessToken == token.AccessToken {
					t.Error("Token returned the expired access token")
				}
				if !next.LoginBy.Equal(found.Token.LoginBy) || !next.LoggedInAt.Equal(found.Token.LoggedInAt) {
					t.Errorf("the refresh moved the login: %v, want %v", next, found.Token)
				}
			})
		})
	}
}

func TestReadRefuses(t *testing.T) {
	golec := func(creation, token string) string {
		return `{"creation_timestamp":` + creation + `,"token":{"access_token":"emulated.a","refresh_token":"emulated.r","scope":"api"` + token + `}}`
	}
	row := func(change, to string) string {
		return strings.Replace(string(sample(t, "schwabdev-3.json")), change, to, 1)
	}
	other := errors.New("neither")
	for _, c := range []struct {
		name, data string
		options    *porting.Options
		kind       error
	}{
		{"empty", " \n", nil, brokerauth.ErrCorrupt},
		{"text", "Access token last updated: 01/02/24", nil, brokerauth.ErrCorrupt},
		{"no object", `"emulated.access"`, nil, errors.ErrUnsupported},
		{"unknown object", `{"hello":"emulated.access"}`, nil, errors.ErrUnsupported},
		{"huge", `{"token":"` + strings.Repeat("x", 2<<20) + `"}`, nil, errors.ErrUnsupported},
		{"pickle", string(sample(t, "tda-api.pickle")), nil, errors.ErrUnsupported},
		{"old pickle", "(dp0\nS'access_token'\np1\n", nil, errors.ErrUnsupported},
		{"UTF-16", "\xff\xfe{\x00}\x00", nil, errors.ErrUnsupported},
		{"SQLite", "SQLite format 3\x00emulated.access", nil, errors.ErrUnsupported},
		{"a store's record", `{"v":1,"provider":"schwab","token":{"access_token":"emulated.a","refresh_token":"emulated.r"}}`, nil, errors.ErrUnsupported},
		{"NaN", golec("NaN", ""), nil, brokerauth.ErrCorrupt},
		{"Infinity", golec("1780315200", `,"expires_at":Infinity`), nil, brokerauth.ErrCorrupt},
		{"beyond any number", golec("1e999", ""), nil, brokerauth.ErrCorrupt},
		{"future login", golec("1790000000", ""), nil, brokerauth.ErrCorrupt},
		{"milliseconds", golec("1780315200000", ""), nil, brokerauth.ErrCorrupt},
		{"before its time", golec("-1", ""), nil, brokerauth.ErrCorrupt},
		{"access token for ever", golec("1780315200", `,"expires_at":1790000000`), nil, brokerauth.ErrCorrupt},
		{"negative life", golec("1780315200", `,"expires_in":-5`), nil, brokerauth.ErrCorrupt},
		{"login of the wrong type", golec(`"1780315200"`, ""), nil, brokerauth.ErrCorrupt},
		{"token of the wrong type", `{"creation_timestamp":1780315200,"token":"emulated.access"}`, nil, brokerauth.ErrCorrupt},
		{"access token of the wrong type", `{"token":{"access_token":5,"refresh_token":"emulated.r","scope":"api"}}`, nil, brokerauth.ErrCorrupt},
		{"no access token", `{"token":{"refresh_token":"emulated.r","scope":"api"}}`, nil, brokerauth.ErrCorrupt},
		{"no refresh token", `{"token":{"access_token":"emulated.a","scope":"api"}}`, nil, other},
		{"line break in a token", `{"token":{"access_token":"emulated.a\nX: y","refresh_token":"emulated.r","scope":"api"}}`, nil, brokerauth.ErrCorrupt},
		{"duplicate key", golec("1780315200", `,"access_token":"emulated.b"`), nil, brokerauth.ErrCorrupt},
		{"deep", strings.Repeat(`{"token":`, 5000) + "1" + strings.Repeat("}", 5000), nil, brokerauth.ErrCorrupt},
		{"two values", golec("1780315200", "") + "{}", nil, brokerauth.ErrCorrupt},
		{"no broker", string(sample(t, "neither.json")), nil, other},
		{"no broker either", string(sample(t, "oauth2.json")), nil, other},
		{"both brokers", `{"token":{"access_token":"emulated.a","refresh_token":"emulated.r","scope":"api MoveMoney"}}`, nil, other},
		{"another broker", string(sample(t, "schwab-py.json")), &porting.Options{Provider: "tastytrade"}, other},
		{"another environment", string(sample(t, "tastytrade-new.json")), &porting.Options{Provider: "tastytrade"}, other},
		{"told a future login", string(sample(t, "oauth2.json")),
			&porting.Options{Provider: "schwab", LoggedInAt: refreshed.AddDate(1, 0, 0)}, brokerauth.ErrCorrupt},
		{"several rows", "[{},{}]", nil, errors.ErrUnsupported},
		{"no rows", "[]", nil, errors.ErrUnsupported},
		{"no time", row("2026-06-01T12:00:00+00:00", "yesterday"), nil, brokerauth.ErrCorrupt},
		{"encrypted, no key", string(sample(t, "schwabdev-3-encrypted.json")), nil, other},
		{"encrypted, wrong key", string(sample(t, "schwabdev-3-encrypted.json")),
			&porting.Options{FernetKey: strings.Replace(fernet, "Z", "Y", 1)}, other},
		{"encrypted, short key", string(sample(t, "schwabdev-3-encrypted.json")), &porting.Options{FernetKey: "c2hvcnQ="}, other},
		{"encrypted, cut", row(access, "enc:gAAAAABrBIaO"), &porting.Options{FernetKey: fernet}, brokerauth.ErrCorrupt},
		{"newer export", `{"brokerauth_login":2,"provider":"schwab","token":{}}`, nil, errors.ErrUnsupported},
		{"damaged export", `{"brokerauth_login":"1","provider":"schwab","token":{}}`, nil, brokerauth.ErrCorrupt},
		{"export of no broker", `{"brokerauth_login":1,"provider":"` + strings.Repeat("emulated", 9) + `","token":{"access_token":"a","refresh_token":"r"}}`,
			&porting.Options{Provider: "schwab"}, brokerauth.ErrCorrupt},
		{"export with damaged extra", `{"brokerauth_login":1,"provider":"x","token":{"access_token":"a","refresh_token":"r","extra":{"a":1}}}`,
			nil, brokerauth.ErrCorrupt},
		{"export that lives for ever", `{"brokerauth_login":1,"provider":"x","token":{"access_token":"a","refresh_token":"r","expiry":"2090-01-01T00:00:00Z"}}`,
			nil, brokerauth.ErrCorrupt},
		{"TD state of a wrong type", `{"access_token":"emulated.a","access_token_expires_at":"soon"}`, nil, brokerauth.ErrCorrupt},
		{"pyTD of a wrong type", `{"access_token":{"token":7},"refresh_token":null}`, nil, brokerauth.ErrCorrupt},
		{"tastytrade that ends sometime", strings.Replace(string(sample(t, "tastytrade-11.json")), "-0400", " in spring", 1), nil, brokerauth.ErrCorrupt},
		{"tastytrade without a secret", `{"session_token":"emulated.a","refresh_token":"emulated.r","provider_secret":""}`, nil, brokerauth.ErrCorrupt},
	} {
		t.Run(c.name, func(t *testing.T) {
			at(t, refreshed.Add(time.Minute), func(t *testing.T) {
				found, err := porting.Read([]byte(c.data), c.options)
				if err == nil {
					t.Fatalf("Read took it as %s of %s", found.Format, found.Provider)
				}
				for _, kind := range []error{brokerauth.ErrCorrupt, errors.ErrUnsupported} {
					if errors.Is(err, kind) != (kind == c.kind) {
						t.Errorf("Read: %v; errors.Is %v: %t", err, kind, kind != c.kind)
					}
				}
				if strings.Contains(err.Error(), "emulated") || !strings.HasPrefix(err.Error(), "porting: ") {
					t.Errorf("Read: %v", err)
				}
			})
		})
	}
}

// Whatever is cut off a file, what is left is no login.
func TestReadCut(t *testing.T) {
	at(t, refreshed.Add(time.Minute), func(t *testing.T) {
		for _, s := range samples {
			data := []byte(strings.TrimSpace(string(sample(t, s.file))))
			for n := range data {
				if _, err := porting.Read(data[:n], s.options); !errors.Is(err, brokerauth.ErrCorrupt) {
					t.Fatalf("%s cut to %d bytes: %v, want ErrCorrupt", s.file, n, err)
				}
			}
		}
	})
}

// An asynchronous refresh of tastytrade 10 and 11 dates the session 900 days ahead, where it has 900 seconds: the first use
// renews it.
func TestReadTastytradeDays(t *testing.T) {
	at(t, refreshed, func(t *testing.T) {
		data := strings.Replace(string(sample(t, "tastytrade-11.json")), "2026-06-01 ", "2028-11-17 ", 1)
		found, err := porting.Read([]byte(data), nil)
		if err != nil || found.Token.AccessToken != access || found.Token.Expiry.After(refreshed) || found.Token.Expiry.IsZero() {
			t.Errorf("Read: %+v, %v; want a token that is due for renewal", found, err)
		}
	})
}

// TD Ameritrade's replies had no id_token.
func TestReadIDToken(t *testing.T) {
	data := `{"token":{"access_token":"emulated.a","refresh_token":"emulated.r","id_token":"emulated.i"}}`
	if found, err := porting.Read([]byte(data), nil); err != nil || found.Provider != "schwab" {
		t.Errorf("Read: %v, %v; want a login at schwab", found, err)
	}
}

func TestFoundPrints(t *testing.T) {
	at(t, refreshed, func(t *testing.T) {
		found, err := porting.Read(sample(t, "tastytrade.json"), nil)
		if err != nil {
			t.Fatal(err)
		}
		text, err := json.Marshal(found)
		if err != nil {
			t.Fatal(err)
		}
		o := porting.Options{FernetKey: "emulated.key"}
		options, err := json.Marshal(o)
		if err != nil {
			t.Fatal(err)
		}
		var log strings.Builder
		slog.New(slog.NewTextHandler(&log, nil)).Info("reading", "options", o, "found", found)
		for _, s := range []string{
			fmt.Sprintf("%v %+v %#v %s", found, found, found, *found), string(text),
			fmt.Sprintf("%v %+v %#v %s", o, &o, o, o), string(options), log.String(),
		} {
			if strings.Contains(s, "emulated") {
				t.Errorf("it prints %s", s)
			}
		}
	})
}

func TestReadWithoutExpiry(t *testing.T) {
	at(t, refreshed, func(t *testing.T) {
		data := `{"access_token":"emulated.a","refresh_token":"emulated.r","expiry":"0001-01-01T00:00:00Z"}`
		for provider, want := range map[string]time.Time{"schwab": refreshed, "elsewhere": {}} {
			found, err := porting.Read([]byte(data), &porting.Options{Provider: provider})
			if err != nil {
				t.Fatal(err)
			}
			if !found.Token.Expiry.Equal(want) {
				t.Errorf("at %s an unknown expiry is %v, want %v", provider, found.Token.Expiry, want)
			}
		}
	})
}

// Another machine's clock may be a little ahead; that makes no login longer. One that is over is still handed out, as
// its days are an estimate.
func TestReadClocks(t *testing.T) {
	at(t, loggedIn.Add(-time.Minute), func(t *testing.T) {
		data := strings.Replace(string(sample(t, "schwab-py.json")), `"expires_at": 1780320600`, `"expires_at": 1780316000`, 1)
		found, err := porting.Read([]byte(data), nil)
		if err != nil {
			t.Fatal(err)
		}
		if want := loggedIn.Add(-time.Minute); !found.Token.LoggedInAt.Equal(want) {
			t.Errorf("the login was at %v, want %v", found.Token.LoggedInAt, want)
		}
		time.Sleep(8 * 24 * time.Hour)
		if found, err = porting.Read(sample(t, "schwab-py.json"), nil); err != nil || found.Token == nil || len(found.Notes) != 1 {
			t.Errorf("a login that is over: %v, %v; want the token and a note", found, err)
		}
	})
}

func TestExport(t *testing.T) {
	at(t, refreshed.Add(time.Minute), func(t *testing.T) {
		broker := emulator.Schwab(t)
		info := broker.Provider().Info()
		want := full(func(t *brokerauth.Token) { t.Extra["api_server"] = "https://api01.example" })
		data, err := porting.Export(info, want)
		if err != nil {
			t.Fatal(err)
		}
		found, err := porting.Read(data, nil)
		if err != nil {
			t.Fatal(err)
		}
		if found.Provider != info.Name || found.Identity != info.Identity || !cmp.Equal(found.Token, want) {
			t.Errorf("Read after Export returned %s, %s, %v", found.Provider, found.Identity, plain(found.Token))
		}
		want.RefreshToken = ""
		if _, err := porting.Export(info, want); err == nil {
			t.Error("Export took a login without a refresh token")
		}
		// A broker of somebody else's, whose tokens live otherwise.
		other := &brokerauth.Token{AccessToken: access, RefreshToken: refresh, LoggedInAt: loggedIn, LoginBy: loggedIn.AddDate(1, 0, 0)}
		if data, err = porting.Export(brokerauth.Info{Name: "elsewhere"}, other); err != nil {
			t.Fatal(err)
		}
		if found, err = porting.Read(data, nil); err != nil || !cmp.Equal(found.Token, other) {
			t.Errorf("Read after Export returned %v, %v", found, err)
		}
	})
}

func TestExportSchwabPy(t *testing.T) {
	at(t, refreshed.Add(time.Minute), func(t *testing.T) {
		data, err := porting.ExportSchwabPy(full(nil))
		if err != nil {
			t.Fatal(err)
		}
		var got, want map[string]any
		if err := errors.Join(json.Unmarshal(data, &got), json.Unmarshal(sample(t, "schwab-go.json"), &want)); err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Error(diff)
		}
		for name, change := range map[string]func(*brokerauth.Token){
			"login time":    func(t *brokerauth.Token) { t.LoggedInAt = time.Time{} },
			"refresh token": func(t *brokerauth.Token) { t.RefreshToken = "" },
		} {
			if _, err := porting.ExportSchwabPy(full(change)); err == nil {
				t.Errorf("ExportSchwabPy took a login without a %s", name)
			}
		}
	})
}

func TestFiles(t *testing.T) {
	home, work := t.TempDir(), t.TempDir()
	t.Setenv("HOME", home)
	t.Setenv("USERPROFILE", home)
	t.Setenv("XDG_CONFIG_HOME", "")
	t.Setenv("TD_CONFIG_DIR", "~/td")
	t.Chdir(work)
	if got := porting.Files(); len(got) != 0 {
		t.Errorf("Files found %q where there is nothing", got)
	}
	put := func(dir string, names ...string) (paths []string) {
		for _, name := range names {
			path := filepath.Join(dir, filepath.FromSlash(name))
			if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(path, nil, 0o600); err != nil {
				t.Fatal(err)
			}
			paths = append(paths, path)
		}
		return paths
	}
	want := put(home, ".schwabdev/tokens.db", ".config/schwab-agent/token.json", ".config/go-schwab/.json",
		".td_python_api/state.json", ".td_python_library/td_state.json", "td/KEY@AMER.OAUTHAP")
	put(home, "td/ssl/key.pem", "td/pyTD.log", ".tdm/not-asked-for", ".td_python_api/readme.txt")
	put(work, "tokens.json", "td_state.json", "other.json")
	if err := os.MkdirAll(filepath.Join(home, ".td_python_api", "folder.json"), 0o700); err != nil {
		t.Fatal(err)
	}
	want = append(want, "tokens.json", "td_state.json")
	if diff := cmp.Diff(want, porting.Files()); diff != "" {
		t.Error(diff)
	}
}

func FuzzRead(f *testing.F) {
	for _, s := range samples {
		f.Add(sample(f, s.file), "", fernet)
	}
	f.Add(sample(f, "tda-api.pickle"), "schwab", "")
	f.Add([]byte(`{"brokerauth_login":1,"provider":"schwab","token":{"access_token":"a","refresh_token":"r","extra":{"x":"y"}}}`), "schwab", "")
	f.Add([]byte(strings.Repeat("[", 100)), "schwab", "")
	// The Fernet specification's own example, where a token should be.
	f.Add([]byte(`{"access_token_issued":"","refresh_token_issued":"","access_token":"enc:gAAAAAAdwJ6wAAECAwQFBgcICQoLDA0ODy021cpGVWKZ_eEwCGM4BLLF_5CV9dOPmrhuVUPgJobwOz7JcbmrR64jVmpU4IwqDA=="}`),
		"", "cw_0x689RpI-jtRR7oE8h_eQsKImvJapLeSbXpwFe4I=")
	f.Fuzz(func(t *testing.T, data []byte, provider, key string) {
		began := time.Now()
		found, err := porting.Read(data, &porting.Options{Provider: provider, FernetKey: key})
		if err != nil {
			if !strings.HasPrefix(err.Error(), "porting: ") {
				t.Errorf("the error %q does not say whose it is", err)
			}
			return
		}
		if found.Provider == "" || found.Format == "" {
			t.Errorf("Read returned neither broker nor format: %+v", found)
		}
		token := found.Token
		if token == nil {
			return
		}
		late := began.Add(10 * time.Minute)
		if token.RefreshToken == "" || token.LoggedInAt.After(late) || token.Issued.After(late) {
			t.Errorf("Read returned a login that cannot be: %v", plain(token))
		}
		if found.Provider == "schwab" && (token.Expiry.IsZero() || token.Expiry.After(late.Add(30*time.Minute)) ||
			token.LoginBy.After(late.AddDate(0, 0, 7))) {
			t.Errorf("Read returned a login that outlives Schwab's: %v", plain(token))
		}
		// What is moved once can be moved again, and stays what it is.
		info := brokerauth.Info{Name: found.Provider, Identity: found.Identity}
		if token.AccessToken == "" || !fits(info) {
			return
		}
		again, err := porting.Export(info, token)
		if err != nil {
			t.Fatal(err)
		}
		if next, err := porting.Read(again, nil); err != nil || !cmp.Equal(next.Token, token, cmp.Comparer(sameExtra)) {
			t.Errorf("Read after Export: %v, want %v", err, plain(token))
		}
	})
}

// fits reports whether a broker can be called so.
func fits(info brokerauth.Info) bool {
	return (brokerauth.Key{Provider: info.Name, Identity: info.Identity}).Validate() == nil &&
		strings.IndexFunc(info.Name+info.Identity, func(r rune) bool { return r < 0x21 || r > 0x7e }) < 0
}

// sameExtra takes none for an empty one, and leaves alone what JSON cannot spell.
func sameExtra(a, b map[string]string) bool {
	if len(a) != len(b) {
		return false
	}
	for name, value := range a {
		if strings.ToValidUTF8(value, "�") != b[name] && strings.ToValidUTF8(b[name], "�") != value {
			return false
		}
	}
	return true
}
