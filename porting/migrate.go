package porting

import (
	"cmp"
	"errors"
	"fmt"
	"net/url"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/brokerauth/brokerauth"
	"github.com/brokerauth/brokerauth/internal/tdaddress"
)

// Finding is one thing that changes from TD Ameritrade to Schwab.
type Finding struct {
	Topic   string `json:"topic"`
	TD      string `json:"td"`                // how it was
	Schwab  string `json:"schwab"`            // how it is
	Setting string `json:"setting,omitempty"` // the environment variable that has it now
	Value   string `json:"value,omitempty"`   // what that should be, if it can be worked out; never a secret
	Todo    string `json:"todo,omitempty"`    // what remains for the user to do; empty: nothing, as far as settings show
}

// Migrate says what a program that was made for TD Ameritrade has to change for Schwab. When nothing is left to do, no
// Finding has a Todo. It judges settings, and cannot see whether code was changed or anybody has logged in.
//
// Of env, the environment or whatever the user states in its place, it reads what older programs set (TD_CLIENT_ID,
// TD_CONSUMER_KEY, TD_CALLBACK_URL, TD_BASE_URL, TD_CONFIG_DIR, TD_STORE_TOKENS, TD_LOG_LEVEL) and what is set for Schwab
// already (SCHWAB_APP_KEY, SCHWAB_APP_SECRET, SCHWAB_CALLBACK_URL, SCHWAB_BASE_URL, BROKERAUTH_STORE). state is the content of the old
// token file; nil: there is none.
//
// The facts are TD Ameritrade's developer pages and Schwab's portal text "Schwab & API Security".
func Migrate(env map[string]string, state []byte) []Finding {
	const set = "set SCHWAB_"
	oldKey := cmp.Or(env["TD_CLIENT_ID"], env["TD_CONSUMER_KEY"])
	key, secret := env["SCHWAB_APP_KEY"], env["SCHWAB_APP_SECRET"]
	callback := Finding{
		Topic: "callback URL", TD: cmp.Or(withoutQuery(env["TD_CALLBACK_URL"]), "http and localhost allowed"),
		Schwab:  "https only, 127.0.0.1 instead of localhost, at most 255 characters, compared to the letter",
		Setting: "SCHWAB_CALLBACK_URL", Value: schwabCallback(env["TD_CALLBACK_URL"]),
	}
	if first, _, _ := strings.Cut(env["TD_CALLBACK_URL"], ","); first != "" && withoutQuery(strings.TrimSpace(first)) == "" {
		callback.TD = "TD_CALLBACK_URL is no address with a host, so nothing follows from it"
	}
	if now := env["SCHWAB_CALLBACK_URL"]; now == "" {
		callback.Todo = set + "CALLBACK_URL to " + callback.Value + ", and register just that with the app"
	} else if fault := callbackFault(now); fault != "" {
		callback.Todo = "SCHWAB_CALLBACK_URL " + fault + ": register and set " + callback.Value + " instead"
	} else {
		callback.Value = now
	}
	app := Finding{
		Topic: "registration", TD: "an app at developer.tdameritrade.com, ready at once",
		Schwab: "a new app at https://developer.schwab.com with the product \"Trader API - Individual\"; approval takes days, " +
			"and again after every change",
	}
	id := Finding{
		Topic: "client id", TD: "the consumer key, sent with @AMER.OAUTHAP at its end",
		Schwab: "the new app's key as it is, without an ending", Setting: "SCHWAB_APP_KEY",
	}
	switch {
	case key == "":
		app.Todo = "register an app with the callback URL " + callback.Value + " and wait until its status is \"Ready For Use\""
		id.Todo = set + "APP_KEY to the new app's key"
	case strings.Contains(strings.ToUpper(key), "@AMER.OAUTHAP") || oldKey != "" && strings.EqualFold(key, bareKey(oldKey)):
		app.Todo = "register an app with the callback URL " + callback.Value + " and wait until its status is \"Ready For Use\""
		id.Todo = "SCHWAB_APP_KEY is TD Ameritrade's consumer key: set the new app's key"
	}
	hidden := Finding{
		Topic: "client secret", TD: "none", Schwab: "every token call carries it, with the app key, as HTTP Basic",
		Setting: "SCHWAB_APP_SECRET",
	}
	if secret == "" {
		hidden.Todo = set + "APP_SECRET to the new app's secret"
	}
	findings := []Finding{app, id, hidden, callback}
	findings = append(findings, endpoints(env)...)
	findings = append(findings, storage(env)...)
	if state != nil {
		findings = append(findings, tokenFile(state))
	}
	return append(findings, []Finding{{
		Topic: "login's life", TD: "90 days, renewed by the program for ever",
		Schwab: "7 days from the user's consent, and nothing extends them: a person logs in every week",
	}, {
		Topic: "access token's life", TD: "30 minutes", Schwab: "30 minutes; refreshed ahead of time without anybody",
	}, {
		Topic: "refresh", TD: "a new refresh token only with access_type=offline",
		Schwab: "a refresh token comes with every answer; the newest one counts, and only one program may refresh a login",
	}, {
		Topic: "a login that is over", TD: `400 {"error":"invalid_grant"}`,
		Schwab: "400 unsupported_token_type with refresh_token_authentication_error inside, or invalid_client with " +
			"\"refresh token invalid\"; here it is ErrLoginRequired",
	}, {
		Topic: "a client that is refused", TD: "a page about a third-party application",
		Schwab: "401 invalid_client \"Unauthorized\", or a page \"Access Denied\"; here it is ErrRejected where it is final",
	}, {
		Topic: "an access token that is over", TD: `401 {"error":"The access token being passed has expired or is invalid."}`,
		Schwab: `401 {"errors":[{"id":…,"status":…,"title":…,"detail":…}]}; Session.Client refreshes and tries once more`,
	}, {
		Topic: "accounts in addresses", TD: "the account number",
		Schwab: "its hashValue from GET /trader/v1/accounts/accountNumbers",
	}, {
		Topic: "calls without a login", TD: "quotes with apikey=", Schwab: "none",
	}, {
		Topic: "streaming login", TD: "GET /v1/userprincipals: credential and token",
		Schwab: "GET /trader/v1/userPreference: channel and function id, with the access token without \"Bearer \"",
	}}...)
}

func endpoints(env map[string]string) []Finding {
	findings := []Finding{
		{Topic: "login page", TD: "https://auth.tdameritrade.com/auth", Schwab: "https://api.schwabapi.com/v1/oauth/authorize"},
		{Topic: "token endpoint", TD: "https://api.tdameritrade.com/v1/oauth2/token", Schwab: "https://api.schwabapi.com/v1/oauth/token"},
		{Topic: "API", TD: "https://api.tdameritrade.com/v1",
			Schwab: "https://api.schwabapi.com/trader/v1 and https://api.schwabapi.com/marketdata/v1"},
	}
	if env["TD_BASE_URL"] != "" || env["SCHWAB_BASE_URL"] != "" {
		findings = append(findings, Finding{
			Topic: "base URL", TD: "TD_BASE_URL names an emulated broker", Schwab: "an emulated Schwab has an address of its own",
			Setting: "SCHWAB_BASE_URL", Value: withoutQuery(env["SCHWAB_BASE_URL"]),
		})
	}
	return findings
}

// storage is about pyTD's switches.
func storage(env map[string]string) []Finding {
	var findings []Finding
	f := Finding{Topic: "where tokens are kept", Setting: "BROKERAUTH_STORE"}
	switch dir := env["TD_CONFIG_DIR"]; strings.ToLower(env["TD_STORE_TOKENS"]) {
	case "false":
		f.TD, f.Setting = "TD_STORE_TOKENS=False: in memory", ""
		f.Schwab = "in memory, for a program that keeps running: whatever ends forgets the login"
		if env["BROKERAUTH_STORE"] == "" {
			f.Todo = "unset TD_STORE_TOKENS: a login at Schwab must outlive the command; in your own program, Store: new(memory.Store)"
		}
	case "", "true":
		if dir == "" {
			break
		}
		f.TD, f.Value = "in the folder that TD_CONFIG_DIR names", cmp.Or(env["BROKERAUTH_STORE"], "disk:"+filepath.Join(dir, "brokerauth"))
		f.Schwab = "in the user's own folder, unless told otherwise"
	default:
		f.TD, f.Schwab = "TD_STORE_TOKENS is neither True nor False", "BROKERAUTH_STORE says where"
		f.Todo = "set TD_STORE_TOKENS to True or False, or remove it"
	}
	if f.TD != "" {
		findings = append(findings, f)
	}
	if env["TD_LOG_LEVEL"] != "" {
		f := Finding{Topic: "log", TD: "TD_LOG_LEVEL", Schwab: "slog, warnings unless told otherwise", Setting: "BROKERAUTH_LOG"}
		if env["TD_LOG_LEVEL"] == "DEBUG" {
			f.Value = "debug"
		}
		findings = append(findings, f)
	}
	return findings
}

func tokenFile(state []byte) Finding {
	f := Finding{Topic: "token file", TD: "refresh tokens of 90 days", Schwab: "none can be moved: TD Ameritrade ended in May 2024"}
	found, err := Read(state, nil)
	why := ""
	if err != nil {
		why = strings.TrimPrefix(err.Error(), "porting: ")
		for _, kind := range []error{errors.ErrUnsupported, brokerauth.ErrCorrupt} {
			why = strings.TrimSuffix(why, ": "+kind.Error()) // which is for programs
		}
	}
	switch {
	case err == nil && found.Token == nil:
		f.Todo = "delete the old token file"
	case err == nil && found.Provider == schwab:
		f.TD, f.Schwab = "none", "this file of "+found.Format+" holds a Schwab login"
		f.Todo = "import it, so that it has one home: brokerauth import FILE --move"
	case err == nil:
		f.Todo = "see what else uses the file of " + found.Format + ": it holds a login at " + found.Provider
	case errors.Is(err, errors.ErrUnsupported) || errors.Is(err, brokerauth.ErrCorrupt):
		f.Todo = "delete the old token file if nothing else uses it: " + why
	default:
		f.Todo = "see which program uses the old token file: " + why
	}
	return f
}

// bareKey is a consumer key as its owner knows it.
func bareKey(key string) string {
	bare, _, _ := strings.Cut(key, "@")
	return bare
}

// withoutQuery is an address fit to be shown.
func withoutQuery(s string) string {
	u, err := url.Parse(s)
	if err != nil || u.Host == "" {
		return ""
	}
	return (&url.URL{Scheme: u.Scheme, Host: u.Host, Path: u.Path}).String()
}

// schwabCallback is the callback closest to TD Ameritrade's that Schwab takes.
func schwabCallback(td string) string {
	const usual = "https://127.0.0.1:8182"
	first, _, _ := strings.Cut(td, ",") // TD took a list
	u, err := url.Parse(strings.TrimSpace(first))
	if err != nil || u.Hostname() == "" || u.Opaque != "" {
		return usual
	}
	host, port := strings.ToLower(u.Hostname()), u.Port()
	if loopback(host) || host == "127.0.0.1" || host == "::1" {
		host = "127.0.0.1"
		// A port below 1024 needs privileges.
		if n, err := strconv.ParseUint(port, 10, 16); err != nil || n < 1024 {
			port = "8182"
		}
	} else if strings.EqualFold(u.Scheme, "http") && port == "80" {
		port = ""
	}
	if strings.Contains(host, ":") {
		host = "[" + host + "]"
	}
	if port != "" {
		host += ":" + port
	}
	s := (&url.URL{Scheme: "https", Host: host, Path: strings.TrimRight(u.Path, "/")}).String()
	if callbackFault(s) != "" {
		return usual
	}
	return s
}

func loopback(host string) bool {
	host = strings.ToLower(host)
	return host == "localhost" || strings.HasSuffix(host, ".localhost")
}

// callbackFault says why Schwab refuses a callback URL. It goes on from the setting's name.
func callbackFault(callback string) string {
	u, err := url.Parse(callback)
	switch {
	case err != nil || u.Host == "":
		return "is no URL"
	case strings.Contains(callback, ","):
		return "holds several URLs"
	case u.Scheme != "https":
		return "is not https"
	case loopback(u.Hostname()):
		return "names localhost"
	case len(callback) > 255:
		return fmt.Sprintf("has %d characters, where 255 is the most", len(callback))
	}
	return ""
}

// SchwabAddress returns where a request to one of TD Ameritrade's addresses goes at Schwab, for people to read: an
// account number in it is replaced by {accountHash}, and the query is left out. ok is false if td is no address of TD
// Ameritrade's; schwab is empty if Schwab has no counterpart, as for saved orders and watchlists.
//
// A Schwab Session's Client, which sends no request there, says so, too.
func SchwabAddress(td string) (schwab string, ok bool) { return tdaddress.Schwab(td) }
