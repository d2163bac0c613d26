package hunt_test

import (
	"context"
	"crypto/tls"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/brokerauth/brokerauth"
	"github.com/brokerauth/brokerauth/conformance/emulator"
	"github.com/brokerauth/brokerauth/flows"
	"github.com/brokerauth/brokerauth/internal/hunt"
	"github.com/brokerauth/brokerauth/porting"
	"github.com/brokerauth/brokerauth/providers/authcode"
	"github.com/brokerauth/brokerauth/providers/schwab"
	"github.com/brokerauth/brokerauth/providers/tastytrade"
	"github.com/brokerauth/brokerauth/storage/disk"
	"github.com/brokerauth/brokerauth/storage/keyring"
	"github.com/brokerauth/brokerauth/storage/memory"
	"github.com/brokerauth/brokerauth/storage/sealed"
)

const secret = "emulated.s+cret/of&many=kinds"

func TestFind(t *testing.T) {
	for name, text := range map[string]string{
		"plain":       "x" + secret + "y",
		"query":       "a=1&secret=" + url.QueryEscape(secret),
		"query lower": strings.ToLower(url.QueryEscape(secret)),
		"path":        "/" + url.PathEscape(secret) + "/",
		"hex":         fmt.Sprintf("%x", secret),
		"HEX":         fmt.Sprintf("%X", secret),
		"base64":      base64.StdEncoding.EncodeToString([]byte(secret)),
		"base64url":   base64.RawURLEncoding.EncodeToString([]byte(secret)),
		"Basic 1":     "Basic " + base64.StdEncoding.EncodeToString([]byte("k:"+secret)),
		"Basic 2":     "Basic " + base64.StdEncoding.EncodeToString([]byte("ke:"+secret)),
		"Basic 3":     "Basic " + base64.StdEncoding.EncodeToString([]byte("key:"+secret)),
		"%v":          fmt.Sprint([]byte("x" + secret + "y")),
		"%#v":         fmt.Sprintf("%#v", []byte("x"+secret+"y")),
		"in JSON":     base64.StdEncoding.EncodeToString([]byte(`{"v":1,"refresh_token":"` + secret + `"}`)),
	} {
		if found := hunt.Find(text, "another secret", secret); len(found) != 1 || !strings.HasPrefix(found[0], "secret 1") {
			t.Errorf("%s: found %q", name, found)
		}
	}
	if found := hunt.Find("a secret's fingerprint is "+secret[:12], secret, "", "a"); found != nil {
		t.Errorf("found %q where there is none", found)
	}
}

func TestTree(t *testing.T) {
	if runtime.GOOS == "windows" {
		t.Skip("Windows has no such modes")
	}
	dir := t.TempDir()
	none := func(string) bool { return false }
	put := func(name, text string, mode fs.FileMode) {
		path := filepath.Join(dir, name)
		if err := errors.Join(os.WriteFile(path, []byte(text), mode), os.Chmod(path, mode)); err != nil {
			t.Fatal(err)
		}
	}
	put("private", secret, 0o600)
	put("public", "nothing", 0o644)
	if found := hunt.Tree(dir, none, secret); found != nil {
		t.Errorf("found %q where there is none", found)
	}
	for name, plant := range map[string]func(){
		"name":   func() { put("login-"+url.PathEscape(secret), "", 0o600) },
		"group":  func() { put("of-a-group", secret, 0o640) },
		"others": func() { put("public", fmt.Sprintf("%x", secret), 0o604) },
	} {
		plant()
		if found := hunt.Tree(dir, none, secret); len(found) != 1 {
			t.Errorf("%s: found %q", name, found)
		}
		if err := errors.Join(os.RemoveAll(dir), os.Mkdir(dir, 0o700)); err != nil {
			t.Fatal(err)
		}
	}
}

// login is one that has been through all that issues a secret, with all that can be printed of it.
func everything(t *testing.T) (values map[string]any, secrets []string) {
	ctx := t.Context()
	const password, key = "emulated.passphrase", "emulated.key-of-32-bytes-exactly"
	b := emulator.Schwab(t, emulator.Config{ClientSecret: secret, AccessTTL: time.Second})
	events := []brokerauth.Event{}
	mem := new(memory.Store)
	first := &brokerauth.Session{Provider: b.Provider(), Store: mem}
	t.Cleanup(func() { first.Close() })
	if err := first.Login(ctx, b.Approve); err != nil {
		t.Fatal(err)
	}
	box, err := sealed.New(new(memory.Store), sealed.Key([]byte(key)))
	if err != nil {
		t.Fatal(err)
	}
	s := &brokerauth.Session{Provider: b.Provider(), Store: box, Observe: func(e brokerauth.Event) { events = append(events, e) }}
	t.Cleanup(func() { s.Close() })
	login, err := s.Begin(ctx)
	if err != nil {
		t.Fatal(err)
	}
	stolen := s.Complete(ctx, login, "https://127.0.0.1:8182/?code=emulated.stolen-code%40&state=forged")
	if err := s.Login(ctx, b.Approve); err != nil {
		t.Fatal(err)
	}
	token, err := s.Token(ctx)
	if err != nil {
		t.Fatal(err)
	}
	values = map[string]any{}
	for _, fault := range []emulator.Fault{{Status: 500, Body: "no: " + token.RefreshToken}, {Cut: true}, {Drop: true}, {Status: 403},
		{Status: 400, Body: `{"error":"invalid_request","error_description":"refresh_token=` + url.QueryEscape(token.RefreshToken) + `"}`}} {
		b.Inject(fault)
		_, err := s.Refresh(ctx, nil)
		values[fmt.Sprintf("refusal %+v", fault.Status)] = err
	}
	if token, err = s.Refresh(ctx, nil); err != nil {
		t.Fatal(err)
	}
	status, err := s.Status(ctx)
	if err != nil {
		t.Fatal(err)
	}
	b.RevokeLogins()
	_, dead := s.Refresh(ctx, nil)
	if dead == nil {
		t.Fatal("a dead login was refreshed")
	}
	deadStatus, _ := s.Status(ctx)
	folder, err := disk.New(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	ring, err := keyring.New("")
	if err != nil {
		t.Fatal(err)
	}
	partner, err := tastytrade.New(tastytrade.Config{ClientSecret: secret, Grant: "emulated.grant-of-a-person"})
	if err != nil {
		t.Fatal(err)
	}
	found, err := porting.Read([]byte(`{"creation_timestamp":1700000000,"token":{"access_token":"emulated.imported-access","refresh_token":"emulated.imported-refresh","token_type":"Bearer","expires_at":1700001800}}`),
		&porting.Options{Provider: "schwab"})
	if err != nil {
		t.Fatal(err)
	}
	keeper := new(brokerauth.Keeper)
	keeper.Add(s)
	oauth := authcode.Config{ClientID: "id", ClientSecret: secret, Grant: "emulated.grant-of-a-person", BaseURL: "https://user:emulated.of-the-proxy@127.0.0.1"}
	for name, v := range map[string]any{
		"Login": *login, "*Login": login, "Token": *token, "*Token": token, "Session": s, "Client": s.Client(nil), "TokenSource": s.TokenSource(ctx),
		"Keeper": keeper, "Status": status, "Status of a dead login": deadStatus, "Event": events, "Info": b.Provider().Info(),
		"memory": mem, "sealed": box, "disk": folder, "keyring": ring,
		"sealed.Passphrase": sealed.Passphrase(password), "sealed.Key": sealed.Key([]byte(key)), "sealed.Secret": *sealed.Key([]byte(key)),
		"schwab.Config":     schwab.Config{AppKey: "key", AppSecret: secret, CallbackURL: "https://127.0.0.1"},
		"tastytrade.Config": tastytrade.Config{ClientSecret: secret, Grant: "emulated.grant-of-a-person"},
		"authcode.Config":   oauth, "Provider": b.Provider(), "GrantProvider": partner,
		"porting.Options": porting.Options{FernetKey: key}, "porting.Found": found,
		"flows.Options": flows.Options{Certificate: new(tls.Certificate)},
		"flows.Web":     flows.Web{Keys: [][]byte{[]byte(key)}}, "*flows.Web": &flows.Web{Keys: [][]byte{[]byte(key)}},
		"stolen code": stolen, "dead login": dead,
	} {
		values[name] = v
	}
	return values, append(b.Secrets(), login.State, login.Secret, password, key, "emulated.grant-of-a-person", "emulated.of-the-proxy",
		"emulated.stolen-code@", "emulated.imported-access", "emulated.imported-refresh")
}

// told writes v in each way that a program may.
func told(v any) string {
	var b strings.Builder
	for _, verb := range []string{"%v", "%+v", "%#v", "%q", "%s", "%x", "%d"} {
		fmt.Fprintf(&b, verb+"\n", v)
		fmt.Fprintf(&b, verb+"\n", []any{v})
		fmt.Fprintf(&b, verb+"\n", map[string]any{"v": v})
		fmt.Fprintf(&b, verb+"\n", struct{ V any }{v})
	}
	fmt.Fprintln(&b, v)
	text, _ := json.Marshal(v) // what cannot be written tells nothing
	b.Write(text)
	for _, h := range []slog.Handler{slog.NewTextHandler(&b, nil), slog.NewJSONHandler(&b, nil)} {
		slog.New(h).Info("told", "v", v)
	}
	if err, ok := v.(error); ok {
		for ; err != nil; err = errors.Unwrap(err) {
			fmt.Fprintf(&b, "%v %#v\n", err, err)
		}
	}
	return b.String()
}

// Nothing that the library hands out shows a secret, however it is written down. A Login is the exception that a web app
// needs: its JSON is the whole of it, and is not for showing.
func TestNothingThatPrintsIsSecret(t *testing.T) {
	values, secrets := everything(t)
	if len(secrets) < 15 {
		t.Fatalf("only %d secrets were issued", len(secrets))
	}
	for name, v := range values {
		text := told(v)
		if login, ok := v.(*brokerauth.Login); ok || name == "Login" {
			if !ok {
				l := v.(brokerauth.Login)
				login = &l
			}
			whole, err := json.Marshal(login)
			if err != nil {
				t.Fatal(err)
			}
			text = strings.ReplaceAll(text, string(whole), "")
		}
		for _, what := range hunt.Find(text, secrets...) {
			t.Errorf("%s shows %s", name, what)
		}
	}
}

// A program that dies of what the library gave it leaves no secret on its standard error.
func TestPanicsShowNoSecret(t *testing.T) {
	if name := os.Getenv("HUNT_PANIC"); name != "" {
		values, secrets := everything(t)
		os.WriteFile(os.Getenv("HUNT_SECRETS"), []byte(strings.Join(secrets, "\n")), 0o600)
		go panic(values[name]) // of a goroutine of its own, past what the testing package catches
		time.Sleep(time.Minute)
	}
	for _, name := range []string{"*Token", "Token", "Login", "dead login", "refusal 500", "schwab.Config", "Session"} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			kept := filepath.Join(t.TempDir(), "secrets")
			ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
			defer cancel()
			cmd := exec.CommandContext(ctx, os.Args[0], "-test.run", "^TestPanicsShowNoSecret$")
			cmd.Env = append(os.Environ(), "HUNT_PANIC="+name, "HUNT_SECRETS="+kept, "GOTRACEBACK=all")
			out, err := cmd.CombinedOutput()
			secrets, readErr := os.ReadFile(kept)
			if err == nil || readErr != nil || !strings.Contains(string(out), "panic: ") {
				t.Fatalf("it did not panic: %v, %v\n%s", err, readErr, out)
			}
			for _, what := range hunt.Find(string(out), strings.Split(string(secrets), "\n")...) {
				t.Errorf("the panic shows %s", what)
			}
		})
	}
}
