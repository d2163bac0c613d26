package main

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/url"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"

	"golang.org/x/term"

	"github.com/brokerauth/brokerauth"
	"github.com/brokerauth/brokerauth/internal/private"
)

// maxSettings bounds a file of settings, in bytes.
const maxSettings = 64 << 10

// settings are where settings come from, for one profile.
type settings struct {
	profile string
	sources []source          // the first one that has a name counts
	borrows []string          // names whose values ./.env gave
	open    bool              // ./.env can be read by other users
	exposed []string          // files of secrets that can be, too, as warn has been told
	warn    func(text string) // nil: nobody is told
}

// source is one place that settings come from.
type source struct {
	what string
	get  func(name string) string // empty: not set
}

// loadSettings finds the settings of a profile. One that was named reads its own file before the environment, so that
// cron and services need neither an environment nor a working directory.
func loadSettings(profile string, named bool) (*settings, error) {
	if err := checkProfile(profile); err != nil {
		return nil, err
	}
	s := &settings{profile: profile}
	own, err := ownFile(profileFile(profile))
	if err != nil {
		return nil, usageError{err}
	}
	here, err := s.workingFile(".env")
	if err != nil {
		return nil, usageError{err}
	}
	s.sources = []source{{"the environment", os.Getenv}, here, own}
	if named {
		s.sources = []source{own, {"the environment", os.Getenv}, here}
	}
	return s, nil
}

// settings returns the settings of the run's profile.
func (a *app) settings() (*settings, error) {
	if a.found != nil {
		return a.found, nil
	}
	found, err := loadSettings(a.profile, a.named)
	if err != nil {
		return nil, err
	}
	log, err := found.get("BROKERAUTH_LOG")
	if err == nil && log != "" && !strings.EqualFold(log, "debug") {
		err = fmt.Errorf("BROKERAUTH_LOG is %q: set it to debug, or leave it out", log)
	}
	if err != nil {
		return nil, usageError{err}
	}
	found.warn = a.warn
	a.found, a.debug = found, log != ""
	return found, nil
}

func (a *app) warn(text string) { fmt.Fprintln(a.err, "brokerauth: "+text) }

// settingsHelp tells of all settings.
func settingsHelp() string {
	var b strings.Builder
	b.WriteString("Settings are looked for in the flags, the environment, the file .env in the working directory, and the file\n")
	if file := profileFile("PROFILE"); file != "" {
		b.WriteString(file + " (mode 0600).\n")
	} else {
		b.WriteString("PROFILE.env among this user's settings.\n")
	}
	b.WriteString("A profile that --profile names reads its own file first. For each NAME, NAME_FILE may name a file that holds the value.\n\n")
	var bases []string
	line := func(name, what string) { fmt.Fprintf(&b, "  %-28s %s\n", name, what) }
	for _, broker := range brokers() {
		for _, s := range broker.settings {
			line(s.name, s.what)
		}
		bases = append(bases, broker.prefix+baseURL)
	}
	line("BROKERAUTH_STORE", "like --store; never taken from .env")
	line(passphrase, "of a sealed store, if its key is not in the keyring; never taken from .env")
	line("BROKERAUTH_LOG", "debug: tell on standard error all that happens to a login; never taken from .env")
	line(fernetKey, "of a file that import reads; never taken from .env")
	line("TD_STORE_TOKENS", "False, as for pyTD: like --store memory, unless a store is named; never taken from .env")
	line("BROWSER", "the program that opens an address; never taken from .env")
	b.WriteString("  " + strings.Join(bases, ", ") + "\n")
	line("", "an emulated broker, or a proxy; never taken from .env")
	return b.String()
}

// profileFile is where a profile's own settings may stand; empty: this user has no such place.
func profileFile(profile string) string {
	dir, err := os.UserConfigDir()
	if err != nil {
		return ""
	}
	return filepath.Join(dir, "brokerauth", profile+".env")
}

// places tells a person where to set what is missing.
func places(profile string) string {
	if file := profileFile(profile); file != "" {
		return "in the environment or in " + file + " (mode 0600)"
	}
	return "in the environment"
}

// checkProfile allows what is a file name on every system and shows plainly.
func checkProfile(profile string) error {
	const letters = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_.@+"
	if profile == "" || len(profile) > 64 || profile[0] == '.' || strings.Trim(profile, letters) != "" {
		return usageError{fmt.Errorf("profile %q is no name: use at most 64 letters, digits and -_.@+, and no dot at the start", profile)}
	}
	return nil
}

// ownFile reads a profile's own file. It may set anything, so nobody else may have a hand in it.
func ownFile(path string) (source, error) {
	none := source{path, func(string) string { return "" }}
	if path == "" {
		return none, nil
	}
	text, info, err := readRegular(path)
	if errors.Is(err, fs.ErrNotExist) {
		return none, nil
	}
	if errors.Is(err, fs.ErrPermission) {
		err = fmt.Errorf("%w: run this as the user that it belongs to, or set HOME to your own", err)
	}
	if err == nil {
		err = private.Check(path, info)
	}
	if err != nil {
		return none, err
	}
	values, err := parseEnv(path, text)
	if err != nil {
		return none, err
	}
	return source{path, func(name string) string { return values[name] }}, nil
}

// workingFile reads the working directory's file, which may have come with somebody else's folder. So it may set what
// belongs to an app at a broker, and nothing that leads a login, a token or a secret elsewhere.
func (s *settings) workingFile(name string) (source, error) {
	none := source{name, func(string) string { return "" }}
	path, err := filepath.Abs(name)
	if err != nil {
		return none, nil // without a working directory there is no such file
	}
	text, info, err := readRegular(path)
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, errNotRegular) {
		return none, nil // a folder of that name is a Python environment
	}
	if err != nil {
		return none, err
	}
	values, err := parseEnv(path, text)
	if err != nil {
		return none, err
	}
	var allowed, refused []string
	for _, b := range brokers() {
		for _, setting := range b.settings {
			allowed = append(allowed, setting.name)
		}
	}
	for name, value := range values {
		if u, err := url.Parse(value); value != "" && slices.Contains(allowed, name) && strings.HasSuffix(name, "_CALLBACK_URL") &&
			(err != nil || !slices.Contains([]string{"127.0.0.1", "localhost", "::1"}, u.Hostname())) {
			return none, fmt.Errorf("%s sets %s to an address that is not on this computer, and whoever has it would get the login's code: "+
				"set it %s, if it is yours", path, name, places(s.profile))
		}
		if upper := strings.ToUpper(name); upper == "BROWSER" || strings.HasPrefix(upper, "BROKERAUTH_") ||
			strings.HasSuffix(upper, baseURL) || isProxy(name) ||
			slices.Contains(allowed, strings.TrimSuffix(upper, "_FILE")) && !slices.Contains(allowed, upper) {
			refused = append(refused, name)
		}
	}
	if len(refused) > 0 {
		slices.Sort(refused)
		where := places(s.profile)
		if slices.ContainsFunc(refused, isProxy) {
			where = "in the environment" // nothing else tells net/http of a proxy
		}
		return none, fmt.Errorf("%s sets %s: a file in the working directory may set only %s: "+
			"set the rest %s", path, strings.Join(refused, ", "), strings.Join(allowed, ", "), where)
	}
	s.open = runtime.GOOS != "windows" && info.Mode().Perm()&0o077 != 0
	return source{path, func(name string) string {
		value := values[name]
		if value == "" || !slices.Contains(allowed, name) {
			return ""
		}
		if !slices.Contains(s.borrows, name) {
			s.borrows = append(s.borrows, name)
		}
		return value
	}}, nil
}

func isProxy(name string) bool { return strings.HasSuffix(strings.ToUpper(name), "_PROXY") }

var errNotRegular = errors.New("not a plain file")

func readRegular(path string) ([]byte, fs.FileInfo, error) {
	info, err := os.Stat(path)
	if err != nil {
		return nil, nil, err
	}
	if !info.Mode().IsRegular() {
		return nil, nil, fmt.Errorf("%s is %w", path, errNotRegular)
	}
	f, err := os.Open(path)
	if err != nil {
		return nil, nil, err
	}
	defer f.Close()
	text, err := readBounded(f)
	if err != nil {
		return nil, nil, fmt.Errorf("%s: %w", path, err)
	}
	info, err = f.Stat()
	return text, info, err
}

func readBounded(r io.Reader) ([]byte, error) {
	text, err := io.ReadAll(io.LimitReader(r, maxSettings+1))
	if err == nil && len(text) > maxSettings {
		err = fmt.Errorf("it holds more than %d bytes", maxSettings)
	}
	return text, err
}

// parseEnv reads lines of NAME=value, of which the last for a name counts. Values may stand in quotes, and nothing in
// them is expanded: a secret may hold a dollar. Lines that are something else are other programs' business.
// Errors quote nothing.
func parseEnv(path string, text []byte) (map[string]string, error) {
	values := make(map[string]string)
	text = bytes.TrimPrefix(text, []byte("\ufeff"))
	number := 0
	for line := range strings.Lines(string(text)) {
		number++
		name, value, found := strings.Cut(line, "=")
		name = strings.TrimSpace(strings.TrimPrefix(strings.TrimSpace(name), "export "))
		if !found || name == "" || strings.HasPrefix(name, "#") {
			continue
		}
		value = strings.TrimSpace(value)
		if value != "" && (value[0] == '"' || value[0] == '\'') {
			inside, after, closed := strings.Cut(value[1:], value[:1])
			if after = strings.TrimSpace(after); !closed || after != "" && after[0] != '#' {
				if isSetting(name) {
					return nil, fmt.Errorf("%s: line %d: the quotes around %s do not match", path, number, name)
				}
				continue
			}
			value = inside
		} else if i := strings.Index(value, " #"); i >= 0 {
			value = strings.TrimSpace(value[:i])
		} else if strings.HasPrefix(value, "#") {
			value = ""
		}
		values[name] = value
	}
	return values, nil
}

// isSetting reports whether name is one of this program's.
func isSetting(name string) bool {
	for _, b := range brokers() {
		for _, s := range b.settings {
			if name == s.name || name == s.name+"_FILE" {
				return true
			}
		}
	}
	return name == "BROWSER" || strings.HasPrefix(name, "BROKERAUTH_") || strings.HasSuffix(name, baseURL)
}

// get returns the value of a setting; empty: it is not set.
func (s *settings) get(name string) (string, error) {
	value, _, err := s.find(name)
	return value, err
}

// find returns the value of a setting and where it was found: what stands under its name, or in the file that NAME_FILE
// names, as Docker and Kubernetes hand over secrets.
func (s *settings) find(name string) (value, from string, err error) {
	for _, source := range s.sources {
		value, path := source.get(name), source.get(name+"_FILE")
		switch {
		case value != "" && path != "":
			return "", "", fmt.Errorf("%s sets both %s and %[2]s_FILE: leave one of them out", source.what, name)
		case value != "":
			return value, source.what, nil
		case path == "":
			continue
		}
		f, err := os.Open(path)
		if err != nil && !filepath.IsAbs(path) && strings.Contains(path, "@") { // an address, perhaps, with a password in it
			return "", "", fmt.Errorf("%s_FILE: no such file can be opened: it is to name a file, and the value is to stand in that", name)
		}
		if err != nil {
			return "", "", fmt.Errorf("%s_FILE: %w", name, err)
		}
		defer f.Close()
		text, err := readBounded(f)
		if err != nil {
			return "", "", fmt.Errorf("%s_FILE: %s: %w", name, path, err)
		}
		if value = strings.TrimSpace(string(text)); value == "" {
			return "", "", fmt.Errorf("%s_FILE: %s is empty", name, path)
		}
		if s.warn != nil && !slices.Contains(s.exposed, path) && carelesslyOpen(f) {
			s.exposed = append(s.exposed, path)
			s.warn(fmt.Sprintf("%s_FILE: %s can be read or written by other users: run: chmod 600 %[2]q", name, path))
		}
		return value, path, nil
	}
	return "", "", nil
}

// carelesslyOpen reports whether other users can get at a file of secrets, which this one may change. Those that Docker,
// Kubernetes and systemd hand over are read-only, and often of mode 0444: nobody else is there to read them.
func carelesslyOpen(f *os.File) bool {
	info, err := f.Stat()
	if err != nil || !info.Mode().IsRegular() || runtime.GOOS == "windows" || info.Mode().Perm()&0o077 == 0 {
		return false
	}
	writable, err := os.OpenFile(f.Name(), os.O_WRONLY, 0)
	if err != nil {
		return false
	}
	writable.Close()
	return true
}

// told is what a person should know about the use of ./.env; empty: nothing.
func (s *settings) told() string {
	if len(s.borrows) == 0 {
		return ""
	}
	text := strings.Join(s.borrows, ", ") + " taken from .env in the working directory"
	if s.open {
		text += ", which other users can read or write: run: chmod 600 .env"
	}
	return text
}

// errMissing: settings are not set, and nothing else is wrong.
var errMissing = errors.New("settings are missing")

// provider makes b's provider. Its error names all that is missing and all that is wrong. Given a prompt it asks for
// what a person knows by heart or has at hand, and returns the names of what it asked for.
func (s *settings) provider(ctx context.Context, b broker, prompt *prompt) (p brokerauth.Provider, asked []string, err error) {
	values := make(map[string]string)
	var faults []error
	var missing []setting
	for _, setting := range append(slices.Clone(b.settings), setting{name: b.prefix + baseURL}) {
		value, err := s.get(setting.name)
		if err != nil {
			faults = append(faults, err)
		}
		if values[setting.name] = value; value == "" && err == nil && setting.what != "" && !setting.optional {
			missing = append(missing, setting)
		}
		if value == "" {
			values[setting.name] = setting.sample // to learn of all other faults
		}
	}
	get := func(name string) string { return values[name] }
	if _, err := b.open(get); err != nil {
		faults = append(faults, err)
	}
	// A callback URL is compared to the letter, and nobody knows it by heart.
	if len(faults) == 0 && prompt != nil && !slices.ContainsFunc(missing, func(s setting) bool { return s.usual }) {
		typed, err := prompt.ask(ctx, b.name+": ", missing...)
		if err != nil {
			return nil, nil, err
		}
		for i, setting := range missing {
			values[setting.name] = typed[i]
			asked = append(asked, setting.name)
		}
		missing = nil
	}
	if len(missing) > 0 {
		var names []string
		for _, setting := range missing {
			name := setting.name + " (" + setting.what
			if setting.usual {
				name += ", such as " + setting.sample
			}
			names = append(names, name+")")
		}
		err := fmt.Errorf("%s: %w: set %s %s: see %s", b.name, errMissing, strings.Join(names, ", "), places(s.profile), b.seeGuide())
		if len(faults) == 0 {
			return nil, nil, usageError{err}
		}
		faults = append(faults, errors.New(err.Error())) // it is not all that is wrong
	}
	if len(faults) == 0 {
		var err error
		if p, err = b.open(get); err == nil {
			return p, asked, nil
		}
		faults = append(faults, err)
	}
	return nil, nil, usageError{errors.Join(faults...)}
}

// identity is that of b's app, if the settings name that, which is the first of them: neither a secret nor a callback is
// part of it.
func (s *settings) identity(b broker) (identity string, ok bool) {
	values := map[string]string{}
	for _, setting := range append(slices.Clone(b.settings), setting{name: b.prefix + baseURL}) {
		value, err := s.get(setting.name)
		if err != nil || value == "" && setting.name == b.settings[0].name {
			return "", false
		}
		values[setting.name] = cmp.Or(value, setting.sample)
	}
	p, err := b.open(func(name string) string { return values[name] })
	if err != nil {
		return "", false
	}
	return p.Info().Identity, true
}

// prompt asks a person at a terminal.
type prompt struct {
	in  *os.File
	out io.Writer
}

// newPrompt returns nil if nobody sits there.
func newPrompt(in *os.File, out io.Writer) *prompt {
	if !term.IsTerminal(int(in.Fd())) {
		return nil
	}
	return &prompt{in, out}
}

// ask asks for settings of whose, and returns what is typed. Before it asks for a secret it has the terminal show nothing,
// and leaves it so until all secrets that follow one another are typed: people paste several lines at once.
func (p *prompt) ask(ctx context.Context, whose string, wanted ...setting) (typed []string, err error) {
	state, err := term.GetState(int(p.in.Fd()))
	if err != nil {
		return nil, err
	}
	// Whatever happens: the process must not leave a terminal that shows nothing.
	defer term.Restore(int(p.in.Fd()), state)
	for _, s := range wanted {
		if s.secret {
			err = hush(p.in)
		} else {
			err = term.Restore(int(p.in.Fd()), state)
		}
		if err != nil {
			return nil, err
		}
		fmt.Fprint(p.out, whose+s.what+": ")
		text, err := p.line(ctx, s.secret)
		if err != nil {
			return nil, err
		}
		if text == "" {
			return nil, usageError{fmt.Errorf("%snothing was typed for %s", whose, s.name)}
		}
		typed = append(typed, text)
	}
	return typed, nil
}

func (p *prompt) line(ctx context.Context, secret bool) (string, error) {
	type line struct {
		text string
		err  error
	}
	typed := make(chan line, 1)
	go func() {
		if secret {
			text, err := term.ReadPassword(int(p.in.Fd()))
			fmt.Fprintln(p.out)
			typed <- line{string(text), err}
			return
		}
		var text []byte
		for b := make([]byte, 1); ; {
			n, err := p.in.Read(b) // one by one: what follows the line is for whoever asks next
			if err != nil || n == 1 && b[0] == '\n' {
				typed <- line{string(text), err}
				return
			}
			text = append(text, b[:n]...)
		}
	}()
	select {
	case l := <-typed:
		if l.err != nil {
			return "", usageError{errors.New("the input ended before it was all typed")}
		}
		return strings.TrimSpace(l.text), nil
	case <-ctx.Done():
		fmt.Fprintln(p.out)
		return "", ctx.Err()
	}
}
