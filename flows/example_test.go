package flows_test

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"

	"github.com/brokerauth/brokerauth"
	"github.com/brokerauth/brokerauth/flows"
	"github.com/brokerauth/brokerauth/providers/schwab"
	"github.com/brokerauth/brokerauth/storage/memory"
)

func Example() {
	// A Session does this part: it begins the login and, in finish, trades the callback for a token and saves it.
	login := &brokerauth.Login{
		URL:         "https://broker.example/authorize?client_id=app&state=qGdGLH0R",
		RedirectURL: "https://127.0.0.1:8182",
		State:       "qGdGLH0R",
	}
	finish := func(ctx context.Context, callback string) error {
		fmt.Println("came back with", callback)
		return nil
	}

	flow := flows.Paste(&flows.Options{
		In:  strings.NewReader("\"https://127.0.0.1:8182/?code=C0.abc%40&state=qGdGLH0R\"\n"),
		Out: os.Stdout,
	})
	if err := flow(context.Background(), login, finish); err != nil {
		fmt.Println(err)
	}
	// Output:
	// Log in at:
	//
	//     https://broker.example/authorize?client_id=app&state=qGdGLH0R
	//
	// After you log in, the browser shows a page that cannot be reached: that is right; copy its whole address and paste it here within 30 seconds:
	// came back with https://127.0.0.1:8182/?code=C0.abc%40&state=qGdGLH0R
}

func ExampleWeb() {
	app, err := schwab.New(schwab.Config{AppKey: "key", AppSecret: "secret", CallbackURL: "https://app.example/schwab/callback"})
	if err != nil {
		fmt.Println(err)
		return
	}
	// A real app has one for each user, and a store that all its hosts share.
	alice := &brokerauth.Session{Provider: app, Store: new(memory.Store), Profile: "alice"}
	defer alice.Close()
	key := make([]byte, 32) // a real app's comes from its secret manager
	rand.Read(key)

	mux := http.NewServeMux()
	mux.Handle("/schwab/", &flows.Web{
		Keys:  [][]byte{key},
		After: "/",
		Session: func(r *http.Request) (*brokerauth.Session, error) {
			if user, _, ok := r.BasicAuth(); ok && user == "alice" {
				return alice, nil
			}
			return nil, errors.New("nobody is signed in")
		},
	})

	r := httptest.NewRequest("GET", "https://app.example/schwab/start", nil)
	r.SetBasicAuth("alice", "")
	w := httptest.NewRecorder()
	mux.ServeHTTP(w, r)
	page, _, _ := strings.Cut(w.Header().Get("Location"), "?")
	fmt.Println(w.Code, page)
	// Output: 303 https://api.schwabapi.com/v1/oauth/authorize
}
