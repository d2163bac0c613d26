//go:build linux || freebsd || netbsd || openbsd || dragonfly

package keyring

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/godbus/dbus/v5"

	"github.com/brokerauth/brokerauth"
)

// maxItem has no limit to respect: large items are slow.
const maxItem = 64 << 10

// secretService is a keyring that speaks the Secret Service API, a freedesktop.org draft. The items have the
// attributes that go-keyring gives them, so that it and secret-tool(1) find them. This package does not use go-keyring
// here, since it starts a bus and a keyring where there are none, asks the user unbidden, and then waits for ever.
type secretService struct {
	ctx     context.Context // a person who is being asked to unlock is no longer when it ends
	conn    *dbus.Conn
	owner   string // the keyring's own name on the bus, which no other ever gets
	session dbus.ObjectPath
	service string
	prompt  bool
}

const (
	secrets     = "org.freedesktop.secrets"
	secretsPath = "/org/freedesktop/secrets"
	secretIface = "org.freedesktop.Secret."
	noObject    = dbus.ObjectPath("/")
)

// secret is the Secret of the API.
type secret struct {
	Session     dbus.ObjectPath
	Parameters  []byte
	Value       []byte
	ContentType string
}

func openRing(ctx context.Context, service string, prompt bool) (ring, error) {
	address := busAddress()
	if address == "" {
		return nil, errAbsent
	}
	conn, err := dbus.Connect(address, dbus.WithAuth(dbus.AuthExternal(strconv.Itoa(os.Getuid()))))
	if err != nil {
		return nil, fmt.Errorf("%w (%v)", errAbsent, err)
	}
	r := &secretService{ctx: ctx, conn: conn, service: service, prompt: prompt}
	if err := r.begin(); err != nil {
		conn.Close()
		return nil, err
	}
	return r, nil
}

// busAddress returns where the user's session bus listens; empty: there is none.
// Only sockets are looked at: other kinds of address start a program, or lead to other hosts in plain text.
func busAddress() string {
	address, ok := os.LookupEnv("DBUS_SESSION_BUS_ADDRESS")
	if !ok || address == "" {
		// systemd's, which cron, services and SSH can reach too while the user is logged in.
		path := fmt.Sprintf("/run/user/%d/bus", os.Getuid())
		if info, err := os.Stat(path); err != nil || info.Mode().Type() != os.ModeSocket {
			return ""
		}
		address = "unix:path=" + path
	}
	return strings.Join(slices.DeleteFunc(strings.Split(address, ";"), func(a string) bool {
		return !strings.HasPrefix(a, "unix:")
	}), ";")
}

// begin looks for a keyring of this user's that is running, and opens a session. The bus keeps secrets from other users.
func (r *secretService) begin() error {
	var err error
	if r.owner, err = r.lookUp(); err != nil {
		return err
	}
	var uid uint32
	if err := r.conn.BusObject().Call("org.freedesktop.DBus.GetConnectionUnixUser", 0, r.owner).Store(&uid); err != nil {
		return err
	}
	if int(uid) != os.Getuid() {
		// Its own programs take turns by a lock in its own home.
		return fmt.Errorf("it is the keyring of uid %d, and this program runs as uid %d: run it as that user, or in "+
			"a session of this one: %w", uid, os.Getuid(), fs.ErrPermission)
	}
	// gnome-keyring, in versions 42 to 50 at least, aborts now and then if OpenSession is the first that it hears of a
	// connection: it may get to the call before it has made its note of the caller. Whatever it does then with this call
	// is harmless, and before it reads another it makes that note. (GNOME/gnome-keyring, issue 144.)
	_ = r.call(secretsPath, "Service.ReadAlias", "default").Err
	var output dbus.Variant
	return r.call(secretsPath, "Service.OpenSession", "plain", dbus.MakeVariant("")).Store(&output, &r.session)
}

// lookUp returns the name on the bus of the keyring that is running now.
func (r *secretService) lookUp() (owner string, err error) {
	err = r.conn.BusObject().Call("org.freedesktop.DBus.GetNameOwner", 0, secrets).Store(&owner)
	return owner, err
}

// ready sees to it that the keyring has not been started anew, which knows nothing of the session.
func (r *secretService) ready(ctx context.Context) error {
	r.ctx = ctx
	owner, err := r.lookUp()
	if err == nil && owner != r.owner {
		err = errLost
	}
	return err
}

func (r *secretService) close() { r.conn.Close() }

// call calls a method of the Secret Service.
func (r *secretService) call(path dbus.ObjectPath, method string, args ...any) *dbus.Call {
	return r.callAny(path, secretIface+method, args...)
}

// callAny never starts a keyring: that could block for two minutes, and end in one that nobody can unlock.
func (r *secretService) callAny(path dbus.ObjectPath, method string, args ...any) *dbus.Call {
	call := r.conn.Object(r.owner, path).Call(method, dbus.FlagNoAutoStart, args...)
	if e, ok := errors.AsType[dbus.Error](call.Err); ok && explainDBus(e.Name) == errAbsent {
		call.Err = errLost // it was there
	}
	return call
}

func (r *secretService) get(name string) (string, error) {
	for {
		items, err := r.items(name, false)
		if err != nil {
			return "", err
		}
		if len(items) == 0 {
			return "", errMissing
		}
		var s secret
		err = r.call(items[0], "Item.GetSecret", r.session).Store(&s)
		if err == nil {
			return string(s.Value), nil
		}
		// Somebody may have deleted it since.
		again, err2 := r.items(name, false)
		if err2 != nil || slices.Equal(items, again) {
			return "", err
		}
	}
}

// set changes the item where it is, and makes a new one in the default collection only.
func (r *secretService) set(name, value string) error {
	s := secret{r.session, []byte{}, []byte(value), "text/plain; charset=utf8"}
	items, err := r.items(name, true)
	if err != nil {
		return err
	}
	for _, item := range items {
		if err := r.call(item, "Item.SetSecret", s).Err; err != nil {
			return err
		}
	}
	if len(items) > 0 {
		return nil
	}
	collection, err := r.collection()
	if err != nil {
		return err
	}
	if collection == noObject {
		return fmt.Errorf("the keyring has no default collection: make one in the desktop's program for it: %w: %w",
			brokerauth.ErrUnavailable, errors.ErrUnsupported)
	}
	properties := map[string]dbus.Variant{
		secretIface + "Item.Label":      dbus.MakeVariant(r.service + " " + name),
		secretIface + "Item.Attributes": dbus.MakeVariant(r.attributes(name)),
	}
	var item, prompt dbus.ObjectPath
	if err := r.call(collection, "Collection.CreateItem", properties, s, true).Store(&item, &prompt); err != nil {
		return err
	}
	return r.confirm(prompt)
}

func (r *secretService) delete(name string) error {
	items, err := r.items(name, true)
	if err != nil {
		return err
	}
	for _, item := range items {
		var prompt dbus.ObjectPath
		if err := r.call(item, "Item.Delete").Store(&prompt); err != nil {
			return err
		}
		if err := r.confirm(prompt); err != nil {
			return err
		}
	}
	return nil
}

func (r *secretService) attributes(name string) map[string]string {
	return map[string]string{"service": r.service, "username": name}
}

// items returns the unlocked items called name, of all collections. Where one is locked, or might be hidden in a locked
// collection, it asks to unlock; where one is found that is not locked, and every is not set, that will do.
func (r *secretService) items(name string, every bool) ([]dbus.ObjectPath, error) {
	for unlocked := false; ; unlocked = true {
		var open, locked []dbus.ObjectPath
		if err := r.call(secretsPath, "Service.SearchItems", r.attributes(name)).Store(&open, &locked); err != nil {
			return nil, err
		}
		if len(open) > 0 && !every {
			return open, nil
		}
		if len(open)+len(locked) == 0 {
			// Some keyrings cannot search what is locked.
			collection, err := r.collection()
			if err != nil {
				return nil, err
			}
			if collection != noObject {
				var value dbus.Variant
				err := r.callAny(collection, "org.freedesktop.DBus.Properties.Get", secretIface+"Collection", "Locked").Store(&value)
				if err != nil {
					return nil, err
				}
				if is, ok := value.Value().(bool); !ok || is {
					locked = []dbus.ObjectPath{collection}
				}
			}
		}
		if len(locked) == 0 {
			return open, nil
		}
		if unlocked {
			return nil, errLocked
		}
		if err := r.unlock(locked); err != nil {
			return nil, err
		}
	}
}

// collection returns where new items go; noObject: there is none.
func (r *secretService) collection() (dbus.ObjectPath, error) {
	var path dbus.ObjectPath
	err := r.call(secretsPath, "Service.ReadAlias", "default").Store(&path)
	return path, err
}

// unlock unlocks what needs no password, such as a keyring whose password is empty, and asks for others if it may.
func (r *secretService) unlock(locked []dbus.ObjectPath) error {
	var done []dbus.ObjectPath
	var prompt dbus.ObjectPath
	if err := r.call(secretsPath, "Service.Unlock", locked).Store(&done, &prompt); err != nil {
		return err
	}
	switch {
	case prompt == noObject:
		return nil
	case !r.prompt:
		// Until it is called, no prompt shows.
		_ = r.call(prompt, "Prompt.Dismiss").Err
		return errLocked
	}
	return r.ask(prompt, person)
}

// confirm lets the keyring carry out a change. Some, as KeePassXC, do so by prompts only, and show a dialog if
// the user has chosen to be asked.
func (r *secretService) confirm(prompt dbus.ObjectPath) error {
	if prompt == noObject {
		return nil
	}
	wait := quick - quick/6 // to take the question back before the call is given up
	if r.prompt {
		wait = person
	}
	err := r.ask(prompt, wait)
	if errors.Is(err, errDismissed) {
		return errDenied // the keyring is open
	}
	return err
}

// ask shows a prompt, and takes it back if nobody answers in time.
func (r *secretService) ask(prompt dbus.ObjectPath, wait time.Duration) error {
	match := []dbus.MatchOption{dbus.WithMatchSender(r.owner), dbus.WithMatchObjectPath(prompt), dbus.WithMatchInterface(secretIface + "Prompt")}
	err := r.conn.AddMatchSignal(match...)
	if err != nil {
		return err
	}
	defer r.conn.RemoveMatchSignal(match...)
	signals := make(chan *dbus.Signal, 8)
	r.conn.Signal(signals)
	defer r.conn.RemoveSignal(signals)
	if err := r.call(prompt, "Prompt.Prompt", "").Err; err != nil {
		return err
	}
	timer := time.NewTimer(wait)
	defer timer.Stop()
	for {
		select {
		case signal, ok := <-signals:
			if !ok {
				return errLost
			}
			if signal.Path != prompt || signal.Name != secretIface+"Prompt.Completed" || len(signal.Body) == 0 {
				continue
			}
			if dismissed, ok := signal.Body[0].(bool); !ok || dismissed {
				return errDismissed
			}
			return nil
		case <-timer.C:
			err = errSilent
		case <-r.ctx.Done():
			err = r.ctx.Err()
		}
		_ = r.call(prompt, "Prompt.Dismiss").Err
		return err
	}
}
