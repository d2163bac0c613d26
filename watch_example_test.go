package brokerauth_test

import (
	"context"
	"encoding/json"
	"fmt"
	"log"
	"net/http"

	"github.com/brokerauth/brokerauth"
	"github.com/brokerauth/brokerauth/conformance/emulator"
	"github.com/brokerauth/brokerauth/storage/memory"
)

// Schwab's streamer takes the raw access token, without "Bearer ", in the first frame of its websocket, beside what
// the user's preferences say. The connection lives on when the token is renewed; one that is made anew needs the newest.
func ExampleSession_Watch() {
	broker, err := emulator.New("schwab", emulator.Config{}) // stands for schwab.New
	if err != nil {
		log.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	session := &brokerauth.Session{Provider: broker.Provider(), Store: new(memory.Store)}
	defer session.Close()
	if err := session.Login(ctx, broker.Approve); err != nil {
		log.Fatal(err)
	}

	resp, err := session.Client(&http.Client{Transport: broker}).Get("https://api.schwabapi.com/trader/v1/userPreference")
	if err != nil {
		log.Fatal(err)
	}
	defer resp.Body.Close()
	var preference struct {
		StreamerInfo []struct {
			SchwabClientCustomerID string `json:"schwabClientCustomerId"`
			SchwabClientCorrelID   string `json:"schwabClientCorrelId"`
			SchwabClientChannel    string
			SchwabClientFunctionID string `json:"schwabClientFunctionId"`
		}
	}
	if err := json.NewDecoder(resp.Body).Decode(&preference); err != nil {
		log.Fatal(err)
	}
	streamer := preference.StreamerInfo[0]

	for token, err := range session.Watch(ctx) {
		if err != nil {
			log.Print(err) // Watch goes on, and yields a token when there is one
			continue
		}
		login, err := json.Marshal(map[string]any{"requests": []any{map[string]any{
			"requestid": "0", "service": "ADMIN", "command": "LOGIN",
			"SchwabClientCustomerId": streamer.SchwabClientCustomerID, "SchwabClientCorrelId": streamer.SchwabClientCorrelID,
			"parameters": map[string]string{
				"Authorization":          token.AccessToken,
				"SchwabClientChannel":    streamer.SchwabClientChannel,
				"SchwabClientFunctionId": streamer.SchwabClientFunctionID,
			},
		}}})
		if err != nil {
			log.Fatal(err)
		}
		fmt.Println("a frame with the newest token:", len(login) > len(token.AccessToken)) // websocket.Send(login)
		break                                                                              // a streamer goes on
	}
	// Output: a frame with the newest token: true
}

// tastytrade's account streamer wants the token in every message, as auth-token, with "Bearer ". Watch keeps the
// newest at hand for a goroutine that sends heartbeats.
func ExampleSession_Watch_tastytrade() {
	broker, err := emulator.New("tastytrade", emulator.Config{}) // stands for tastytrade.New
	if err != nil {
		log.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	session := &brokerauth.Session{Provider: broker.Provider(), Store: new(memory.Store)}
	defer session.Close()

	tokens := make(chan string)
	go func() {
		defer close(tokens)
		for token, err := range session.Watch(ctx) {
			if err != nil {
				log.Print(err)
				continue
			}
			select {
			case tokens <- "Bearer " + token.AccessToken:
			case <-ctx.Done():
				return
			}
		}
	}()
	authToken := <-tokens
	for beat := range 2 { // select on a ticker and tokens
		message, err := json.Marshal(map[string]any{"action": "heartbeat", "auth-token": authToken, "request-id": beat})
		if err != nil {
			log.Fatal(err)
		}
		fmt.Println("heartbeat", beat, len(message) > len(authToken)) // websocket.Send(message)
	}
	// Output:
	// heartbeat 0 true
	// heartbeat 1 true
}

// A service that holds many logins renews them in the background, and tells people ahead of time that they must log in.
func ExampleKeeper() {
	broker, err := emulator.New("schwab", emulator.Config{})
	if err != nil {
		log.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	store := new(memory.Store)
	var keeper brokerauth.Keeper
	for _, profile := range []string{"ann", "bob"} {
		session := &brokerauth.Session{Provider: broker.Provider(), Store: store, Profile: profile, Observe: func(e brokerauth.Event) {
			if e.Kind == "deadline" {
				fmt.Println(e.Key.Profile, "must log in by", e.LoginBy) // mail it, say
			}
		}}
		defer session.Close()
		if err := session.Login(ctx, broker.Approve); err != nil {
			log.Fatal(err)
		}
		keeper.Add(session)
	}
	done := make(chan struct{})
	go func() {
		keeper.Run(ctx)
		close(done)
	}()
	cancel() // when the service ends
	<-done
	fmt.Println("nothing is under way")
	// Output: nothing is under way
}
