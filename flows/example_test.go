package flows_test

import (
	"context"
	"fmt"
	"os"
	"strings"

	"github.com/brokerauth/brokerauth"
	"github.com/brokerauth/brokerauth/flows"
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
