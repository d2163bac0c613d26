package main

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"runtime"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/brokerauth/brokerauth"
)

// finding is what doctor has to say of one thing.
type finding struct {
	Topic  string `json:"topic"`
	Broker string `json:"broker,omitempty"`
	State  string `json:"state"` // ok, note or wrong
	Found  string `json:"found"`
	Todo   string `json:"todo,omitempty"` // what a person should do
	See    string `json:"see,omitempty"`  // where more is written

	code int // that the command exits with, of what is wrong
}

// about is what a finding is of.
func (f finding) about() string { return strings.TrimSpace(f.Broker + " " + f.Topic) }

func (a *app) doctorCommand() *cobra.Command {
	var online, asJSON bool
	cmd := &cobra.Command{
		Use:   "doctor [BROKER]",
		Short: "Tell what keeps a login from working, and what to do",
		Long: "Tell what keeps a login from working, and what to do: settings, callback, store, clock, files that others can read " +
			"or git would take, the login, and what the broker refused last. It looks at one broker, or at all that are set up.\n\n" +
			"It asks no broker, renews nothing, and writes no more than a record of its own to the store, which it deletes. " +
			"With --online it gets a token, which it renews only if that is due, and makes one call to each of the broker's API products.\n\n" +
			"No secret is in its output, so it can go into a bug report. It exits with 0 if nothing must be mended, else with the " +
			"highest code of what must.",
		Args:      atMostOne,
		ValidArgs: brokerNames(),
	}
	flags := cmd.Flags()
	flags.BoolVar(&online, "online", false, "ask the broker's API, too")
	flags.BoolVar(&asJSON, "json", false, "print the findings as a JSON array")
	cmd.RunE = a.action(func(ctx context.Context, args []string) error {
		d := &doctor{a: a, online: online, stores: make(map[string]bool)}
		if len(args) == 1 {
			b, err := findBroker(args[0])
			if err != nil {
				return err
			}
			a.broker, d.only = b.name, []broker{b}
		}
		d.examine(ctx)
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if asJSON {
			if err := json.NewEncoder(a.out).Encode(d.findings); err != nil {
				return err
			}
		} else {
			d.say()
		}
		return d.verdict()
	})
	return cmd
}

// doctor is one examination.
type doctor struct {
	a      *app
	online bool
	only   []broker // those to look at; nil: all that are set up

	found    *settings
	stores   map[string]bool // those that were looked at, and whether they can keep a login
	keys     []brokerauth.Key
	seen     time.Time // the latest moment that anything here is from
	compared bool      // with a broker's clock
	skew     string    // what that showed; empty: nothing
	findings []finding
}

func (d *doctor) add(broker, topic, state, found, todo string) {
	d.findings = append(d.findings, finding{Topic: topic, Broker: broker, State: state, Found: found, Todo: todo})
}

func (d *doctor) ok(broker, topic, found string)         { d.add(broker, topic, "ok", found, "") }
func (d *doctor) note(broker, topic, found, todo string) { d.add(broker, topic, "note", found, todo) }

// wrong adds what must be mended, and where the docs tell more.
func (d *doctor) wrong(code int, broker, topic, found, todo, see string) {
	d.add(broker, topic, "wrong", found, todo)
	f := &d.findings[len(d.findings)-1]
	f.code, f.See = code, docs+cmp.Or(see, "troubleshooting.md")
}

// wrongs names what must be mended, in the order in which to do it, and the exit code of all.
func (d *doctor) wrongs() (names []string, code int) {
	for _, f := range d.findings {
		if f.State == "wrong" {
			names, code = append(names, f.about()), max(code, f.code)
		}
	}
	return names, code
}

// verdict tells of all that is wrong, and returns it as an error.
func (d *doctor) verdict() error {
	names, code := d.wrongs()
	if len(names) == 0 {
		return nil
	}
	text := "one thing must be mended: "
	if n := len(names); n > 1 {
		text = fmt.Sprintf("%d things must be mended: ", n)
	}
	err := errors.New(text + strings.Join(slices.Compact(names), ", then "))
	d.a.complain(err)
	switch code {
	case 2:
		return told{usageError{err}}
	case 3:
		return told{fmt.Errorf("%w: %w", err, brokerauth.ErrLoginRequired)}
	case 4:
		return told{fmt.Errorf("%w: %w", err, brokerauth.ErrUnavailable)}
	}
	return told{err}
}

// say prints the findings for people.
func (d *doctor) say() {
	for _, f := range d.findings {
		d.a.say("%-5s  %s: %s", f.State, f.about(), f.Found)
		if f.Todo != "" {
			d.a.say("       do: %s", f.Todo)
		}
		if f.See != "" {
			d.a.say("       see: %s", f.See)
		}
	}
	if names, _ := d.wrongs(); names == nil {
		d.a.say("Nothing must be mended.")
	}
}

// examine looks at everything. Whatever is wrong with one thing, it goes on to the next.
func (d *doctor) examine(ctx context.Context) {
	d.ok("", "version", fmt.Sprintf("brokerauth %s, %s, %s/%s", version(), runtime.Version(), runtime.GOOS, runtime.GOARCH))
	d.checkSettings()
	d.checkFiles(ctx)
	d.checkProxies()
	d.keys = d.storedKeys(ctx)
	patients := d.only
	for _, b := range brokers() {
		if d.only == nil && d.isSetUp(b) {
			patients = append(patients, b)
		}
	}
	if len(patients) == 0 {
		d.storeOf(ctx, "")
		d.wrong(2, "", "settings", "no broker is set up here", "set what one of them needs, which brokerauth --help names", "troubleshooting.md")
	}
	for _, b := range patients {
		d.checkBroker(ctx, b)
	}
	d.a.tell(d.found)
	d.checkClock()
	for i := range d.findings {
		f := &d.findings[i]
		f.Found, f.Todo = d.discreet(f.Found), d.discreet(f.Todo)
	}
}

// discreet is text that may be shown to anybody: an error may name a folder, and with it the user, and a secret may stand
// where another setting belongs.
func (d *doctor) discreet(text string) string {
	secrets := []string{passphrase, fernetKey}
	for _, b := range brokers() {
		for _, s := range b.settings {
			if s.secret {
				secrets = append(secrets, s.name)
			}
		}
	}
	for _, name := range secrets {
		if value, _ := d.found.get(name); len(value) >= 4 {
			text = strings.ReplaceAll(text, value, "REDACTED")
		}
	}
	if home, err := os.UserHomeDir(); err == nil && len(home) > 1 {
		variable := "$HOME" // which a shell replaces in quotes, too
		if runtime.GOOS == "windows" {
			variable = "%USERPROFILE%"
		}
		text = strings.ReplaceAll(text, home, variable)
	}
	return text
}

// checkSettings finds the settings. Those that cannot be read do not hide the others.
func (d *doctor) checkSettings() {
	found, err := d.a.settings()
	if err != nil {
		d.wrong(2, "", "settings", forPeople(err), "", "troubleshooting.md#settings")
		if found, err = loadSettings(d.a.profile, d.a.named); err != nil {
			found = &settings{profile: d.a.profile, sources: []source{{"the environment", os.Getenv}}}
		}
		found.warn = d.a.warn
		d.a.found = found
	}
	d.found = found
}

// checkProxies tells of what stands between here and a broker, but not its address, in which a password may be.
func (d *doctor) checkProxies() {
	for _, name := range []string{"HTTPS_PROXY", "https_proxy"} {
		if os.Getenv(name) != "" {
			d.note("", "proxy", name+" is set, so calls to brokers go through a proxy", "if brokers cannot be reached, or miss a header, try without it")
			return
		}
	}
}

// storeOf opens the store of a broker's logins, and says what is wrong with it, once.
func (d *doctor) storeOf(ctx context.Context, broker string) (store keptStore, ok bool) {
	store, err := d.a.openForTokens(ctx, d.found, broker)
	if ok, checked := d.stores[store.name]; checked {
		return store, ok
	}
	const see = "troubleshooting.md#the-store"
	if err == nil && store.name != "memory" {
		err = prove(ctx, store)
	}
	d.stores[store.name] = err == nil && store.name != "memory"
	switch {
	case err != nil && store.Store == nil:
		d.wrong(max(exitCode(err), 1), "", "store", forPeople(err), "", see)
	case mend(err) != "":
		d.wrong(1, "", "store", fmt.Sprintf("%s (%s): %s", store.name, store.how, forPeople(err)),
			mend(err)+elsewhere, see)
	case err != nil:
		d.wrong(max(exitCode(err), 1), "", "store", fmt.Sprintf("%s (%s): %s", store.name, store.how, forPeople(err)), "", see)
	case store.name == "memory":
		d.note("", "store", "memory: every login ends with the command that made it", "leave it out, or name another by --store")
	default:
		d.ok("", "store", fmt.Sprintf("%s (%s) can be read and written", store.name, store.how))
	}
	return store, d.stores[store.name]
}

// storedKeys returns the keys of all logins that can be listed.
func (d *doctor) storedKeys(ctx context.Context) (keys []brokerauth.Key) {
	stores, _ := d.a.allStores(ctx, d.found) // what is wrong with one that is needed storeOf says
	for _, store := range stores {
		if store.name != "memory" {
			more, _ := store.keys(ctx)
			keys = append(keys, more...)
		}
	}
	return keys
}

// isSetUp reports whether anything of b's is set or stored.
func (d *doctor) isSetUp(b broker) bool {
	for _, s := range b.settings {
		if value, err := d.found.get(s.name); value != "" || err != nil {
			return true
		}
	}
	return slices.ContainsFunc(d.keys, func(key brokerauth.Key) bool {
		return key.Provider == b.name && key.Profile == d.a.profile
	})
}

// checkClock compares this computer's clock with the latest moment that anything known of is from.
func (d *doctor) checkClock() {
	if program, err := os.Executable(); err == nil {
		if info, err := os.Stat(program); err == nil {
			d.saw(info.ModTime())
		}
	}
	const todo = "set the clock, and have the system keep it: tokens look fresh or dead at the wrong time by it, and certificates fail"
	switch ahead := time.Until(d.seen); {
	case d.skew != "":
		d.wrong(1, "", "clock", "it is "+d.skew, todo, "troubleshooting.md#the-clock")
	case ahead > time.Minute:
		d.wrong(1, "", "clock", fmt.Sprintf("it is %s behind what is stored here", inWords(ahead)), todo, "troubleshooting.md#the-clock")
	case d.compared:
		d.ok("", "clock", "it agrees with the broker's")
	default:
		d.ok("", "clock", "nothing here is from the future; only --online compares it with a broker's")
	}
}

func (d *doctor) saw(t time.Time) {
	if t.After(d.seen) {
		d.seen = t
	}
}
