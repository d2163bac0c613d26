// Command webapp is a web app whose users each log in to two brokers. Both are emulated, so it needs no account:
//
//	go run ./examples/webapp
//
// and open the address that it prints. In a second browser, or a private window, be somebody else.
package main

import (
	"context"
	"crypto/rand"
	"errors"
	"flag"
	"fmt"
	"html/template"
	"log"
	"net"
	"net/http"
	"os"
	"os/signal"
	"sync"
	"time"

	"github.com/brokerauth/brokerauth"
	"github.com/brokerauth/brokerauth/conformance/emulator"
	"github.com/brokerauth/brokerauth/flows"
	"github.com/brokerauth/brokerauth/providers/tastytrade"
	"github.com/brokerauth/brokerauth/providers/tdameritrade"
	"github.com/brokerauth/brokerauth/storage/memory"
)

func main() {
	log.SetFlags(0)
	listen := flag.String("listen", "127.0.0.1:0", "address and port; port 0 picks one")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	if err := run(ctx, *listen, func(url string) { fmt.Println(url) }); err != nil {
		log.Fatal(err)
	}
}

// run serves the app until ctx ends, and tells ready its address.
func run(ctx context.Context, listen string, ready func(url string)) error {
	l, err := net.Listen("tcp", listen)
	if err != nil {
		return err
	}
	url := "http://" + l.Addr().String() // a real app has https
	app := &app{store: new(memory.Store), users: map[string]string{}, sessions: map[string]*brokerauth.Session{}}
	defer app.close()

	// Two pretend brokers, and this app's registration with each.
	tastyURL, stopTasty, err := serve("tastytrade")
	if err != nil {
		return err
	}
	defer stopTasty()
	tdURL, stopTD, err := serve("tdameritrade")
	if err != nil {
		return err
	}
	defer stopTD()
	tasty, err := tastytrade.NewPartner(tastytrade.Config{
		ClientID: "webapp", ClientSecret: "emulated-secret", Scopes: []string{"read"}, CallbackURL: url + "/tastytrade/callback", BaseURL: tastyURL,
	})
	if err != nil {
		return err
	}
	td, err := tdameritrade.New(tdameritrade.Config{ClientID: "webapp", CallbackURL: url + "/tdameritrade/callback", BaseURL: tdURL})
	if err != nil {
		return err
	}
	app.brokers = []broker{{"tastytrade", "/customers/me/accounts", tasty}, {"tdameritrade", "/v1/accounts", td}}

	server := &http.Server{Handler: app.handler(), ReadHeaderTimeout: 10 * time.Second}
	context.AfterFunc(ctx, func() { server.Close() })
	ready(url)
	if err := server.Serve(l); !errors.Is(err, http.ErrServerClosed) {
		return err
	}
	return nil
}

// serve serves an emulated broker.
func serve(name string) (url string, stop func(), err error) {
	broker, err := emulator.New(name, emulator.Config{})
	if err != nil {
		return "", nil, err
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return "", nil, err
	}
	server := &http.Server{Handler: broker, ReadHeaderTimeout: 10 * time.Second}
	go server.Serve(l)
	return "http://" + l.Addr().String(), func() { server.Close() }, nil
}

type broker struct {
	name, accounts string
	provider       brokerauth.LoginProvider
}

type app struct {
	brokers []broker
	store   brokerauth.Store // a real app's is one that all its hosts share

	mu       sync.Mutex
	users    map[string]string              // by the value of the app's own cookie
	sessions map[string]*brokerauth.Session // by broker and user
}

func (a *app) handler() http.Handler {
	// A real app's come from its secret manager, the same on all hosts.
	key := make([]byte, 32)
	rand.Read(key)

	mux := http.NewServeMux()
	mux.HandleFunc("GET /{$}", a.home)
	mux.HandleFunc("POST /signin", a.signIn)
	for _, b := range a.brokers {
		mux.Handle("/"+b.name+"/", &flows.Web{
			Keys:  [][]byte{key},
			After: "/",
			Session: func(r *http.Request) (*brokerauth.Session, error) {
				user := a.user(r)
				if user == "" {
					return nil, errors.New("nobody is signed in")
				}
				return a.session(b, user), nil
			},
		})
	}
	return new(http.CrossOriginProtection).Handler(mux)
}

// signIn takes anybody's word for who they are. A real app does not.
func (a *app) signIn(w http.ResponseWriter, r *http.Request) {
	user := r.PostFormValue("user")
	if user == "" || len(user) > 40 {
		http.Error(w, "a name of at most 40 bytes, please", http.StatusBadRequest)
		return
	}
	id := rand.Text()
	a.mu.Lock()
	a.users[id] = user
	a.mu.Unlock()
	// Lax, not Strict: it must come along when a broker sends the user back.
	http.SetCookie(w, &http.Cookie{Name: "webapp", Value: id, Path: "/", HttpOnly: true, SameSite: http.SameSiteLaxMode})
	http.Redirect(w, r, "/", http.StatusSeeOther)
}

func (a *app) user(r *http.Request) string {
	c, err := r.Cookie("webapp")
	if err != nil {
		return ""
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.users[c.Value]
}

// session returns the one Session of a user at a broker.
func (a *app) session(b broker, user string) *brokerauth.Session {
	a.mu.Lock()
	defer a.mu.Unlock()
	id := b.name + " " + user
	if a.sessions[id] == nil {
		a.sessions[id] = &brokerauth.Session{Provider: b.provider, Store: a.store, Profile: user}
	}
	return a.sessions[id]
}

func (a *app) close() {
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, s := range a.sessions {
		s.Close()
	}
}

// row is what the page says of a broker.
type row struct {
	Name, Says string
	In         bool
}

func (a *app) home(w http.ResponseWriter, r *http.Request) {
	var data struct {
		User string
		Rows []row
	}
	data.User = a.user(r)
	if data.User != "" {
		for _, b := range a.brokers {
			data.Rows = append(data.Rows, a.row(r.Context(), b, data.User))
		}
	}
	w.Header().Set("Cache-Control", "no-store")
	page.Execute(w, data)
}

// row calls the broker's API in the user's name.
func (a *app) row(ctx context.Context, b broker, user string) row {
	s := a.session(b, user)
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, b.provider.Info().BaseURL+b.accounts, nil)
	if err != nil {
		return row{Name: b.name, Says: err.Error()}
	}
	resp, err := s.Client(nil).Do(req)
	switch {
	case errors.Is(err, brokerauth.ErrLoginRequired):
		return row{Name: b.name, Says: "log in first"}
	case err != nil:
		return row{Name: b.name, Says: err.Error(), In: true}
	}
	defer resp.Body.Close()
	return row{Name: b.name, Says: "your accounts: HTTP " + resp.Status, In: true}
}

var page = template.Must(template.New("page").Parse(`<!DOCTYPE html>
<html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>A web app</title>
<style>:root{color-scheme:light dark}body{font:1.1rem/1.6 system-ui,sans-serif;max-width:40rem;margin:10vh auto;padding:0 1.2rem}form{display:inline}</style>
<h1>A web app</h1>
{{if .User}}<p>You are {{.User}}.</p>
{{range .Rows}}<h2>{{.Name}}</h2><p>{{.Says}}</p>
<p><a href="/{{.Name}}/start">Log in</a>{{if .In}} · <a href="/{{.Name}}/status">Status</a>
<form method="post" action="/{{.Name}}/disconnect"><button>Disconnect</button></form>{{end}}</p>
{{end}}{{else}}<form method="post" action="/signin"><label>Who are you? <input name="user" required maxlength="40" autofocus></label> <button>Sign in</button></form>{{end}}
</html>
`))
