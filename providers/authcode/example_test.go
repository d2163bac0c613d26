package authcode_test

import (
	"context"
	"fmt"
	"net/http"
	"time"

	"golang.org/x/oauth2"

	"github.com/brokerauth/brokerauth"
	"github.com/brokerauth/brokerauth/providers/authcode"
)

// A broker's package holds its facts and asks for the app's settings.
func Example() {
	broker, err := authcode.New(authcode.Config{
		Info:       brokerauth.Info{Name: "examplebroker", BaseURL: "https://api.example.com", Origins: []string{"https://api.example.com"}},
		AuthURL:    "https://login.example.com/authorize",
		TokenURL:   "https://api.example.com/token",
		AuthStyle:  oauth2.AuthStyleInParams,
		PKCE:       true,
		AccessLife: 20 * time.Minute,

		ClientID:    "my-app",
		RedirectURL: "http://127.0.0.1:8080/",
		Transport: transport(func(r *http.Request) (*http.Response, error) { // stands in for the broker
			return answering(200, `{"access_token":"A1","refresh_token":"R1","expires_in":600}`)(r)
		}),
	})
	if err != nil {
		fmt.Println(err)
		return
	}
	ctx := context.Background()
	login, err := broker.Begin(ctx) // the user opens login.URL
	if err != nil {
		fmt.Println(err)
		return
	}
	token, err := broker.Complete(ctx, login, "http://127.0.0.1:8080/?code=C1&state="+login.State)
	if err != nil {
		fmt.Println(err)
		return
	}
	fmt.Println(token.AccessToken, "lives for", token.Expiry.Sub(token.Issued))
	// Output: A1 lives for 10m0s
}
