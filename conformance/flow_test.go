package conformance_test

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/url"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/brokerauth/brokerauth"
	"github.com/brokerauth/brokerauth/conformance"
)

// desk is a flow that passes notes to a user who sits beside it, with at most one fault.
type desk struct {
	pages, callbacks chan string
	begin            func(login *brokerauth.Login) // before everything else
	page             func(login *brokerauth.Login) string
	deaf             bool // to its context
	given            func(err error) error
	finish           func(ctx context.Context, callback string, finish finishFunc) error
	failed           func(err error) (error, bool) // what to end with, if at all
}

type finishFunc = func(ctx context.Context, callback string) error

func (d *desk) flow(ctx context.Context, login *brokerauth.Login, finish finishFunc) error {
	done := ctx.Done()
	if d.deaf {
		done = nil
	}
	if d.begin != nil {
		d.begin(login)
	}
	if ctx.Err() != nil && d.page == nil && !d.deaf {
		return ctx.Err()
	}
	if page := login.URL; d.page == nil {
		d.pages <- page
	} else {
		d.pages <- d.page(login)
	}
	for {
		select {
		case <-done:
			if d.given != nil {
				return d.given(ctx.Err())
			}
			return ctx.Err()
		case callback := <-d.callbacks:
			var err error
			if d.finish != nil {
				err = d.finish(ctx, callback, finish)
			} else {
				err = finish(ctx, callback)
			}
			if err == nil {
				return nil
			}
			if d.failed == nil {
				d.failed = func(err error) (error, bool) { return err, errors.Is(err, brokerauth.ErrRejected) }
			}
			if err, over := d.failed(err); over {
				return err
			}
		}
	}
}

func (d *desk) user() conformance.FlowUser {
	return conformance.FlowUser{
		Page: func(ctx context.Context) (string, error) {
			select {
			case page := <-d.pages:
				return page, nil
			case <-ctx.Done():
				return "", ctx.Err()
			}
		},
		Return: func(ctx context.Context, callback string) error {
			select {
			case d.callbacks <- callback:
				return nil
			case <-ctx.Done():
				return ctx.Err()
			}
		},
	}
}

func sits(d desk) func(*testing.T, *brokerauth.Login) (brokerauth.Flow, conformance.FlowUser) {
	return func(*testing.T, *brokerauth.Login) (brokerauth.Flow, conformance.FlowUser) {
		d := d
		d.pages, d.callbacks = make(chan string, 1), make(chan string)
		return d.flow, d.user()
	}
}

// flowBreakages are flows that each break the named rule.
var flowBreakages = []struct {
	fault, rule string
	open        func(t *testing.T, login *brokerauth.Login) (brokerauth.Flow, conformance.FlowUser)
}{
	{"another page", "it leads to the login page", sits(desk{page: func(login *brokerauth.Login) string { return login.URL + "&prompt=none" }})},
	{"an end at the login page", "it leads to the login page", func(*testing.T, *brokerauth.Login) (brokerauth.Flow, conformance.FlowUser) {
		d := desk{pages: make(chan string, 1), callbacks: make(chan string)}
		return func(_ context.Context, login *brokerauth.Login, _ finishFunc) error {
			d.pages <- login.URL
			return nil
		}, d.user()
	}},
	{"the callback taken apart", "finish gets the callback to the letter", sits(desk{
		finish: func(ctx context.Context, callback string, finish finishFunc) error {
			u, err := url.Parse(callback)
			if err != nil {
				return err
			}
			u.RawQuery = u.Query().Encode()
			return finish(ctx, u.String())
		}})},
	{"the callback twice", "finish gets the callback to the letter", sits(desk{
		finish: func(ctx context.Context, callback string, finish finishFunc) error {
			return errors.Join(finish(ctx, callback), finish(ctx, callback))
		}})},
	{"a context of its own", "finish gets the flow's context", sits(desk{
		finish: func(_ context.Context, callback string, finish finishFunc) error {
			return finish(context.Background(), callback)
		}})},
	{"a detached context", "finish gets the flow's context", sits(desk{
		finish: func(ctx context.Context, callback string, finish finishFunc) error {
			return finish(context.WithoutCancel(ctx), callback)
		}})},
	{"finish in the background", "the flow waits for finish", sits(desk{
		finish: func(ctx context.Context, callback string, finish finishFunc) error {
			go finish(ctx, callback)
			return nil
		}})},
	{"finish unheard", "the flow waits for finish", sits(desk{
		finish: func(ctx context.Context, callback string, finish finishFunc) error {
			go finish(ctx, callback)
			time.Sleep(100 * time.Millisecond)
			return nil
		}})},
	{"success whatever finish says", "a failed finish is no success", sits(desk{failed: func(error) (error, bool) { return nil, true }})},
	{"an error of its own", "a failed finish is no success", sits(desk{
		failed: func(error) (error, bool) { return errors.New("the login failed"), true }})},
	{"the first answer for ever", "a second address can mend the first", func() func(*testing.T, *brokerauth.Login) (brokerauth.Flow, conformance.FlowUser) {
		return func(*testing.T, *brokerauth.Login) (brokerauth.Flow, conformance.FlowUser) {
			d := &desk{pages: make(chan string, 1), callbacks: make(chan string), failed: func(error) (error, bool) { return nil, false }}
			var first error
			d.finish = func(ctx context.Context, callback string, finish finishFunc) error {
				if err := finish(ctx, callback); first == nil {
					first = err
				}
				return first
			}
			return d.flow, d.user()
		}
	}()},
	{"deaf to a cancellation", "the end of its context ends it", sits(desk{deaf: true})},
	{"well after a cancellation", "the end of its context ends it", sits(desk{given: func(error) error { return nil }})},
	{"another error after a cancellation", "the end of its context ends it", sits(desk{
		given: func(err error) error { return fmt.Errorf("the login was given up: %v", err) }})},
	{"deaf to a deadline", "the deadline of its context ends it", sits(desk{deaf: true})},
	{"every end a cancellation", "the deadline of its context ends it", sits(desk{given: func(error) error { return context.Canceled }})},
	{"a page in any case", "an ended context begins nothing", sits(desk{page: func(login *brokerauth.Login) string { return login.URL }})},
	{"a port kept", "another login can follow", func(t *testing.T, login *brokerauth.Login) (brokerauth.Flow, conformance.FlowUser) {
		d := desk{pages: make(chan string, 1), callbacks: make(chan string)}
		return func(ctx context.Context, login *brokerauth.Login, finish finishFunc) error {
			u, err := url.Parse(login.RedirectURL)
			if err != nil {
				return err
			}
			l, err := net.Listen("tcp", u.Host)
			if err != nil {
				return err
			}
			forgotten = append(forgotten, l) // or the collector would close it
			return d.flow(ctx, login, finish)
		}, d.user()
	}},
	{"a state taken out", "the login is only read", sits(desk{begin: func(login *brokerauth.Login) { login.State = "" }})},
	{"a line for the person", "nothing is written to standard output", sits(desk{begin: func(login *brokerauth.Login) { fmt.Println("Log in at:", login.URL) }})},
	{"a goroutine left", "no goroutine of a flow is left", sits(desk{begin: func(*brokerauth.Login) { go func() { select {} }() }})},
}

var forgotten []net.Listener

func TestFlowFindsBreakages(t *testing.T) {
	for _, b := range flowBreakages {
		findsBreakage(t, "TestBreakage", b.fault, b.rule, "", 12*time.Second)
	}
}

// A flow without a fault passes; and a rule that no broken flow breaks may be one that its check does not enforce.
func TestSoundFlow(t *testing.T) {
	var rules []string
	for _, b := range flowBreakages {
		rules = append(rules, b.rule)
	}
	conformance.TestFlow(t, func(t *testing.T, login *brokerauth.Login) (brokerauth.Flow, conformance.FlowUser) {
		rule := strings.Split(t.Name(), "/")[1]
		if !slices.Contains(rules, strings.ReplaceAll(rule, "_", " ")) {
			t.Errorf("no broken flow breaks the rule %q", rule)
		}
		return sits(desk{})(t, login)
	})
}

func ExampleTestFlow() {
	// In a test file of your own:
	//
	//	func TestFlow(t *testing.T) { …
	_ = func(t *testing.T) {
		conformance.TestFlow(t, func(t *testing.T, login *brokerauth.Login) (brokerauth.Flow, conformance.FlowUser) {
			shown, pasted := make(chan string, 1), make(chan string, 1)
			flow := func(ctx context.Context, login *brokerauth.Login, finish func(context.Context, string) error) error {
				if ctx.Err() != nil {
					return ctx.Err()
				}
				shown <- login.URL // or yours: a chat, a dialogue
				select {
				case callback := <-pasted:
					return finish(ctx, callback)
				case <-ctx.Done():
					return ctx.Err()
				}
			}
			return flow, conformance.FlowUser{
				Page: func(ctx context.Context) (string, error) {
					select {
					case page := <-shown:
						return page, nil
					case <-ctx.Done():
						return "", ctx.Err()
					}
				},
				Return: func(ctx context.Context, callback string) error { pasted <- callback; return nil },
			}
		})
	}
	// Output:
}
