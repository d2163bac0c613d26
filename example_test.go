package brokerauth_test

import (
	"context"
	"fmt"
	"log"
	"net/http"
	"time"

	"github.com/brokerauth/brokerauth"
	"github.com/brokerauth/brokerauth/conformance/emulator"
	"github.com/brokerauth/brokerauth/storage/memory"
)

// A program logs in where that is due, and calls the broker's API. Here an emulated broker and its approving user stand
// for schwab.New and flows.Auto, and memory for a store that lasts.
func Example() {
	broker, err := emulator.New("schwab", emulator.Config{})
	if err != nil {
		log.Fatal(err)
	}
	ctx := context.Background()
	session := &brokerauth.Session{Provider: broker.Provider(), Store: new(memory.Store)}
	defer session.Close()

	if err := session.Ensure(ctx, broker.Approve, 12*time.Hour); err != nil {
		log.Fatal(err)
	}
	api := session.Client(&http.Client{Transport: broker})
	resp, err := api.Get(broker.Provider().Info().BaseURL + "/trader/v1/accounts/accountNumbers")
	if err != nil {
		log.Fatal(err)
	}
	defer resp.Body.Close()
	fmt.Println(resp.Status)
	// Output: 200 OK
}
