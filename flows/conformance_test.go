package flows_test

import (
	"context"
	"errors"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/brokerauth/brokerauth"
	"github.com/brokerauth/brokerauth/conformance"
	"github.com/brokerauth/brokerauth/flows"
)

// atBrowser is a flow whose user has a browser, which the flow opens.
func atBrowser(flow func(*flows.Options) brokerauth.Flow, config string) (brokerauth.Flow, conformance.FlowUser) {
	opened := make(chan string, 1)
	f := flow(&flows.Options{In: noInput, Out: io.Discard, Open: func(_ context.Context, address string) error {
		opened <- address
		return nil
	}})
	get := func(ctx context.Context, address string) (*http.Response, error) {
		req, err := http.NewRequestWithContext(ctx, "GET", address, nil)
		if err != nil {
			return nil, err
		}
		resp, err := browserOf(config).Do(req)
		if err == nil {
			resp.Body.Close()
		}
		return resp, err
	}
	return f, conformance.FlowUser{
		Page: func(ctx context.Context) (string, error) {
			select {
			case address := <-opened:
				resp, err := get(ctx, address)
				if err != nil {
					return "", err
				}
				return resp.Header.Get("Location"), nil
			case <-ctx.Done():
				return "", ctx.Err()
			}
		},
		Return: func(ctx context.Context, callback string) error {
			_, err := get(ctx, callback)
			return err
		},
	}
}

// atTerminal is a flow whose user reads what it says and pastes the callback.
func atTerminal(t *testing.T, flow func(*flows.Options) brokerauth.Flow) (brokerauth.Flow, conformance.FlowUser) {
	in, w := pipe(t)
	t.Cleanup(func() { in.Close(); w.Close() })
	out := new(text)
	return flow(&flows.Options{In: in, Out: out, Open: func(context.Context, string) error { return nil }}), conformance.FlowUser{
		Page: func(ctx context.Context) (string, error) {
			for ctx.Err() == nil {
				for line := range strings.Lines(out.String()) {
					if page := strings.TrimSpace(line); strings.HasPrefix(page, "https://broker.example/") {
						return page, nil
					}
				}
				time.Sleep(time.Millisecond)
			}
			return "", ctx.Err()
		},
		Return: func(_ context.Context, callback string) error {
			if _, err := io.WriteString(w, callback+"\n"); err != nil {
				return errors.New("the terminal is gone")
			}
			return nil
		},
	}
}

func TestFlowsConform(t *testing.T) {
	t.Setenv("BROWSER", "none")
	config := home(t)
	t.Run("Browser over http", func(t *testing.T) {
		conformance.TestFlow(t, func(t *testing.T, _ *brokerauth.Login) (brokerauth.Flow, conformance.FlowUser) {
			return atBrowser(flows.Browser, config)
		})
	})
	t.Run("Browser over https", func(t *testing.T) {
		conformance.TestFlow(t, func(t *testing.T, login *brokerauth.Login) (brokerauth.Flow, conformance.FlowUser) {
			login.RedirectURL = strings.Replace(login.RedirectURL, "http:", "https:", 1)
			return atBrowser(flows.Browser, config)
		})
	})
	t.Run("Auto, in a browser", func(t *testing.T) {
		conformance.TestFlow(t, func(t *testing.T, _ *brokerauth.Login) (brokerauth.Flow, conformance.FlowUser) {
			return atBrowser(flows.Auto, config)
		})
	})
	t.Run("Auto, at a terminal", func(t *testing.T) {
		conformance.TestFlow(t, func(t *testing.T, _ *brokerauth.Login) (brokerauth.Flow, conformance.FlowUser) {
			return atTerminal(t, flows.Auto)
		})
	})
	t.Run("Paste", func(t *testing.T) {
		conformance.TestFlow(t, func(t *testing.T, _ *brokerauth.Login) (brokerauth.Flow, conformance.FlowUser) {
			return atTerminal(t, flows.Paste)
		})
	})
}
