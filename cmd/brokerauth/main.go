// Command brokerauth logs in to brokerages and hands out their access tokens.
//
//	export SCHWAB_APP_KEY=… SCHWAB_CALLBACK_URL=https://127.0.0.1:8182
//	brokerauth login schwab
//	brokerauth token schwab --header | curl -H @- https://api.schwabapi.com/trader/v1/accounts/accountNumbers
//
// It keeps logins where programs that use the library with keyring.New("") find them, or in another store that --store
// names, and takes part in their refreshes: whoever comes first asks the broker, and all others take what it saved.
//
// # Stores
//
//	keyring          the system's: the default. Where none is running, as in cron and over SSH, the command says so
//	disk, disk:DIR   plain files that this user alone can read: in the folder of disk.New(""), or in DIR
//	sealed+disk:DIR  files encrypted under a key that is in the keyring, or under a passphrase
//	sqlite:FILE      a SQLite database, which this user alone can read
//	postgres://…     a PostgreSQL database that hosts share, or one behind pgbouncer
//	redis://…        a Redis that hosts share; rediss:// over TLS, ?master_name= by Sentinel, ?addr= for a Cluster's second node
//	memory           forgotten when the command ends
//
// A database's address may hold a password only in BROKERAUTH_STORE, or in the file that BROKERAUTH_STORE_FILE names; it is
// shown without. That of a PostgreSQL on another host states its sslmode, as verify-full, unless PGSSLMODE does. "sealed+"
// encrypts what is kept in any of them.
//
// Later commands find the store that a login went to by themselves, and "brokerauth store move" takes logins elsewhere.
//
// "brokerauth demo" shows all of it on an emulated broker, without an account, and "brokerauth doctor" says what keeps a
// login from working.
//
// # Settings
//
// A setting is looked for in the flags, the environment, the file .env in the working directory, and the file
// PROFILE.env in the folder brokerauth under [os.UserConfigDir], which nobody else may be able to read. A profile that
// is named by --profile reads its own file first. For each NAME, NAME_FILE may name a file that holds the value.
//
//	SCHWAB_APP_KEY, SCHWAB_APP_SECRET, SCHWAB_CALLBACK_URL   the app, as registered at developer.schwab.com
//	TD_CLIENT_ID, TD_CALLBACK_URL                            the same, as it was registered at TD Ameritrade
//	TASTY_CLIENT_SECRET, TASTY_REFRESH_TOKEN                 a personal grant at tastytrade, unless login has stored it
//	TASTY_SANDBOX_CLIENT_SECRET, TASTY_SANDBOX_REFRESH_TOKEN one in tastytrade's sandbox
//	TASTY_CLIENT_ID, TASTY_CALLBACK_URL                      of a partner's app, in the place of a grant
//	SCHWAB_BASE_URL, TD_BASE_URL, TASTY_BASE_URL, TASTY_SANDBOX_BASE_URL
//	                       an emulated broker, or a proxy; never taken from .env
//	BROKERAUTH_STORE       like --store; never taken from .env
//	BROKERAUTH_PASSPHRASE  of a sealed store, if its key is not in the keyring; never taken from .env
//	BROKERAUTH_LOG         debug: tell on standard error all that happens to a login
//	BROKERAUTH_FERNET_KEY  the key of an encrypted file that import reads
//	TD_STORE_TOKENS        False, as for pyTD: like --store memory, unless a store is named
//	BROWSER                the program that opens an address
//
// # Exit codes
//
//	0    done
//	1    failed; of migrate: something is left to do
//	2    the command line or the settings cannot work
//	3    a person must log in
//	4    the broker cannot be reached now
//	130  interrupted
//
// An interrupt ends all waiting, but what was sent to a broker is carried to its save; a second one ends at once.
package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"os/signal"
	"regexp"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
	"unicode"

	"github.com/spf13/cobra"

	"github.com/brokerauth/brokerauth"
)

func main() {
	// A reader that goes away must not end the process between a broker's answer and its save. Ignoring the signal
	// would do, too, but a browser started here would inherit that.
	signal.Notify(make(chan os.Signal, 1), syscall.SIGPIPE)
	stdout := &answer{w: os.Stdout}
	a := &app{in: os.Stdin, out: stdout, err: printable{os.Stderr}}
	ctx := a.interruptible()
	err := a.run(ctx, os.Args[1:])
	if stdout.err != nil && !errors.Is(err, stdout.err) {
		err = errors.Join(err, fmt.Errorf("the answer could not be written: %w", stdout.err))
	}
	a.complain(err)
	os.Exit(exitCode(err))
}

// settle is how long a signal may come in several pieces.
const settle = 300 * time.Millisecond

// interruptible returns a context that the first signal ends. The second one ends the process.
func (a *app) interruptible() context.Context {
	ctx, cancel := context.WithCancel(context.Background())
	signals := make(chan os.Signal, 2)
	for _, s := range []os.Signal{os.Interrupt, syscall.SIGTERM, syscall.SIGHUP} {
		if !signal.Ignored(s) { // as under nohup
			signal.Notify(signals, s)
		}
	}
	go func() {
		<-signals
		cancel()
		// timeout(1) signals twice at once, and a terminal that closes does: that is no second thought of a person.
		time.Sleep(settle)
		for len(signals) > 0 {
			<-signals
		}
		what, ok := a.waiting.Load().(string)
		if !ok {
			what = "what was sent to the broker, to save it"
		}
		fmt.Fprintf(os.Stderr, "brokerauth: waiting for %s: interrupt again to end at once\n", what)
		for <-signals == syscall.SIGHUP { // which no person sends
		}
		os.Exit(130)
	}()
	return ctx
}

// app is one run of the command.
type app struct {
	in       *os.File
	out, err io.Writer

	profile, store string // flags
	named          bool   // the profile was named
	broker         string // what the run is about, for errors; empty: none, or several
	running        bool   // the command line was understood

	last    atomic.Value // the kind of the last event that tells what became of a new token
	waiting atomic.Value // what an interrupted run waits for, if that is no answer of a broker's

	found *settings // of the profile; nil: nobody has looked for them
	debug bool      // the settings ask for all that happens

	opened   map[string]keptStore // by name
	atEnd    []func()             // closes what the stores have opened
	attended bool                 // a person waits, so a keyring may ask to be unlocked
}

func (a *app) run(ctx context.Context, args []string) error {
	root := &cobra.Command{
		Use:           "brokerauth",
		Short:         "Log in to brokerages and keep the login alive",
		SilenceErrors: true,
		SilenceUsage:  true,
		Version:       version(),
	}
	root.SetArgs(args)
	root.SetOut(a.out)
	root.SetErr(a.err)
	flags := root.PersistentFlags()
	flags.StringVar(&a.profile, "profile", "default", "whose login, or what for")
	flags.StringVar(&a.store, "store", "", storeHelp)
	commands := map[string]func() *cobra.Command{
		"login": a.loginCommand, "status": a.statusCommand, "token": a.tokenCommand, "refresh": a.refreshCommand,
		"logout": a.logoutCommand, "keep": a.keepCommand, "import": a.importCommand, "export": a.exportCommand,
		"migrate": a.migrateCommand, "store": a.storeCommand, "doctor": a.doctorCommand, "serve": a.serveCommand,
		"emulate": a.emulateCommand, "demo": a.demoCommand,
	}
	var topic *cobra.Command // that help is asked about
	// Scripts ask for a token at every request, so the command that comes first is made alone: all others, and the texts
	// about them, cost more than the token.
	if len(args) > 0 && commands[args[0]] != nil {
		root.AddCommand(commands[args[0]]())
		root.CompletionOptions.DisableDefaultCmd = true
	} else {
		root.Long = "Log in to brokerages and keep the login alive.\n\n" +
			"Brokers: " + strings.Join(brokerNames(), ", ") + ". Try it without an account: brokerauth demo\n\n" +
			settingsHelp() + "\n" + exitCodes + "\n\nGuides: " + strings.TrimSuffix(strings.Replace(docs, "/blob/", "/tree/", 1), "/") +
			"\nIf something does not work: brokerauth doctor"
		for _, name := range slices.Sorted(maps.Keys(commands)) {
			root.AddCommand(commands[name]())
		}
		root.InitDefaultCompletionCmd()
		completion, _, _ := root.Find([]string{"completion"})
		completion.RunE = func(cmd *cobra.Command, _ []string) error { return cmd.Help() } // cobra looks at no arguments without it
		root.InitDefaultHelpCmd()
		help, _, _ := root.Find([]string{"help"})
		// Left alone it tells of all commands where it knows none of that name, as though that were an answer.
		help.Args = func(_ *cobra.Command, args []string) (err error) {
			var rest []string
			if topic, rest, err = root.Find(args); err == nil && topic.HasSubCommands() {
				err = cobra.NoArgs(topic, rest)
			}
			return err
		}
	}
	cmd, err := root.ExecuteContextC(ctx)
	for _, end := range slices.Backward(a.atEnd) {
		end()
	}
	if err != nil && !a.running {
		return usageError{fmt.Errorf("%s: see: %s --help", onOneLine(err), cmp.Or(topic, cmd).CommandPath())} // cobra's own: it has no type for them
	}
	return err
}

// onOneLine is an error of cobra's, which lists the commands that a mistyped one may mean one to a line.
func onOneLine(err error) string {
	text, meant, found := strings.Cut(err.Error(), "\n\nDid you mean this?\n")
	if found {
		text += " (did you mean " + strings.Join(strings.Fields(meant), " or ") + "?)"
	}
	return text
}

// action makes a cobra function of a command's own.
func (a *app) action(run func(ctx context.Context, args []string) error) func(*cobra.Command, []string) error {
	return func(cmd *cobra.Command, args []string) error {
		a.running = true
		a.named = cmd.Flags().Changed("profile")
		return run(cmd.Context(), args)
	}
}

// exitCodes tells of all of them.
const exitCodes = `Exit codes:

  0    done
  1    failed; of migrate: something is left to do
  2    the command line or the settings cannot work
  3    a person must log in
  4    the broker cannot be reached now
  130  interrupted`

// usageError is about the command line or the settings: a person must change them.
type usageError struct{ error }

func (e usageError) Unwrap() error { return e.error }

// told is an error that a person has read already.
type told struct{ error }

func (e told) Unwrap() error { return e.error }

func exitCode(err error) int {
	switch {
	case err == nil:
		return 0
	case errors.Is(err, context.Canceled): // nothing but a signal ends a wait so
		return 130
	case isUsage(err), errors.Is(err, brokerauth.ErrRejected):
		return 2
	case isUnreachable(err):
		return 1
	case errors.Is(err, brokerauth.ErrLoginRequired):
		return 3
	case errors.Is(err, brokerauth.ErrUnavailable):
		return 4
	}
	return 1
}

func isUsage(err error) bool {
	_, ok := errors.AsType[usageError](err)
	return ok
}

func isUnreachable(err error) bool {
	_, ok := errors.AsType[unreachable](err)
	return ok
}

// complain says on one line what went wrong and what to do.
func (a *app) complain(err error) {
	if _, ok := errors.AsType[told](err); ok || err == nil {
		return
	}
	text := forPeople(err)
	if e, ok := errors.AsType[unreachable](err); ok && e.noKeyring() && !strings.Contains(err.Error(), "\n") {
		text = e.Error() // whatever it was wanted for
	}
	if exitCode(err) == 130 {
		text = "interrupted"
		switch a.last.Load() {
		case "login", "refreshed", "saved":
			if a.broker != "" {
				text += "; the new token was saved"
			}
		}
		if joined, ok := err.(interface{ Unwrap() []error }); ok {
			for _, err := range joined.Unwrap() {
				if !errors.Is(err, context.Canceled) {
					text += "; " + forPeople(err) // what was sent could not be saved, say
				}
			}
		}
	}
	text = strings.ReplaceAll(text, "works in this program but could not be saved", "could not be saved") // the program ends
	if e, ok := errors.AsType[unwritable](err); ok {
		text += ": " + e.todo
	}
	if a.broker != "" && a.profile != "default" && !strings.Contains(text, fmt.Sprintf("profile %q", a.profile)) &&
		!strings.Contains(text, "profile "+a.profile+":") && !strings.Contains(text, "profile "+a.profile+" ") {
		text = fmt.Sprintf("profile %q: %s", a.profile, text)
	}
	_, still := errors.AsType[stillIn](err)
	switch {
	case still:
		text = strings.Replace(text, ": "+brokerauth.ErrLoginRequired.Error(), "", 1)
		text += "; the login that is stored still works: to log in anew, run: " + a.remedy()
	case errors.Is(err, brokerauth.ErrLoginRequired) && a.broker != "" && !isUsage(err):
		// The library says so, too, but not how.
		text = strings.TrimSuffix(strings.TrimSuffix(text, ": log in first"), "; log in again") + ": run: " + a.remedy()
	case errors.Is(err, brokerauth.ErrRejected):
		// A sealed store whose secret is wrong is rejected, too: no broker's guide helps there.
		_, ofBroker := errors.AsType[*brokerauth.Error](err)
		if b, unknown := findBroker(a.broker); unknown == nil && ofBroker && !strings.Contains(text, b.guide) {
			text += "; see " + b.seeGuide()
		}
	}
	fmt.Fprintln(a.err, "brokerauth: "+a.inFull(text))
}

// inFull is text whose advice to log in names the profile and the store, too, of which a provider knows nothing.
func (a *app) inFull(text string) string {
	if a.broker == "" {
		return text
	}
	return loginAdvice.ReplaceAllStringFunc(text, func(found string) string {
		if found != "run: brokerauth login "+a.broker {
			return found // another broker, or told in full
		}
		return "run: " + a.remedy()
	})
}

var (
	loginAdvice = regexp.MustCompile(`run: brokerauth login [\w-]+( --)?`)
	chmodAdvice = regexp.MustCompile(`(: run: chmod \d+ "[^"]*"): permission denied`)
)

// forPeople is an error on one line, without what it has for programs alone: the names of packages, and the sentinels that
// end it after the words which say the same.
func forPeople(err error) string {
	text := strings.ReplaceAll(err.Error(), "\n", "; ")
	for _, prefix := range []string{"brokerauth", "flows", "disk", "keyring", "sealed", "sqlstore", "redis"} {
		text = strings.ReplaceAll(strings.TrimPrefix(text, prefix+": "), ": "+prefix+": ", ": ")
	}
	for _, sentinel := range []error{errors.ErrUnsupported, fs.ErrExist} {
		text = strings.ReplaceAll(text, ": "+sentinel.Error(), "")
	}
	for _, sentinel := range []error{brokerauth.ErrUnavailable, brokerauth.ErrRejected, brokerauth.ErrCorrupt} {
		text = strings.TrimSuffix(text, ": "+sentinel.Error())
	}
	// Behind a command line to run, a person might take it for a part of that.
	return chmodAdvice.ReplaceAllString(text, "$1")
}

// remedy is the command line that logs in.
func (a *app) remedy() string { return a.line("login", a.broker, a.profile) }

// line is a command line about a login in this run's store.
func (a *app) line(command, broker, profile string) string {
	line := "brokerauth " + command + " " + broker
	if profile != "default" {
		line += " --profile " + quoted(profile)
	}
	if a.store != "" {
		line += " --store " + quoted(shown(a.store))
	}
	return line
}

// quoted is an argument as a shell takes it, on one line: no name that this program takes has more.
func quoted(arg string) string {
	arg = strings.ReplaceAll(arg, "\n", " ")
	if strings.ContainsAny(arg, " '\"\\$&;|<>()*?[]#~`!\t") {
		return "'" + strings.ReplaceAll(arg, "'", `'\''`) + "'"
	}
	return arg
}

// printable is a writer for people. Names and texts may come from files and folders of anybody's, and must not speak to
// the terminal.
type printable struct{ w io.Writer }

func (p printable) Write(b []byte) (int, error) {
	if _, err := io.WriteString(p.w, printableText(string(b))); err != nil {
		return 0, err
	}
	return len(b), nil
}

func printableText(s string) string {
	return strings.Map(func(r rune) rune {
		if r == '\n' || unicode.IsPrint(r) {
			return r
		}
		return ' '
	}, s)
}

// answer is standard output. It remembers a write that failed: a token that nobody got is a failure.
type answer struct {
	w   io.Writer
	mu  sync.Mutex // serve says something now and then
	err error
}

func (w *answer) Write(p []byte) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	n, err := w.w.Write(p)
	w.err = cmp.Or(w.err, err)
	return n, err
}
