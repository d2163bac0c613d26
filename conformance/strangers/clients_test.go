package strangers

import (
	"bufio"
	"bytes"
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"runtime/debug"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	_ "github.com/brokerauth/brokerauth/conformance/emulator" // what the command serves: a change of it is one of the tests
)

const (
	appKey = "emulated-app-key"
	// A client that encodes it where it must not, or not where it must, is found out.
	appSecret = "emulated-app+secret/=%41"
)

// TestMain is also what the processes of TestStrictServer run.
func TestMain(m *testing.M) {
	if os.Getenv("STRANGERS_ISSUER") != "" {
		share()
		return
	}
	code := m.Run()
	if built.dir != "" {
		os.RemoveAll(built.dir)
	}
	os.Exit(code)
}

// missing ends a test whose engine is not here.
func missing(t *testing.T, what string) {
	t.Helper()
	if os.Getenv("CI") == "true" {
		t.Fatal(what)
	}
	t.Skip(what)
}

// node returns Node.js, with the packages that a script here needs.
func node(t *testing.T) string {
	t.Helper()
	path, err := exec.LookPath("node")
	if err != nil {
		missing(t, "Node.js is missing: install nodejs and npm, and run npm ci in conformance/strangers")
	}
	if _, err := os.Stat("node_modules/.package-lock.json"); err != nil {
		missing(t, "the npm packages are missing: run npm ci in conformance/strangers")
	}
	return path
}

// python returns a Python that has authlib: the system's may not be the first one.
func python(t *testing.T) string {
	t.Helper()
	for _, path := range []string{"python3", "/usr/bin/python3"} {
		if exec.Command(path, "-c", "import authlib, requests").Run() == nil {
			return path
		}
	}
	missing(t, "authlib is missing: install python3-authlib and python3-requests")
	return ""
}

var built struct {
	sync.Mutex
	dir string
}

// command returns the brokerauth command.
func command(t *testing.T) string {
	t.Helper()
	built.Lock()
	defer built.Unlock()
	path := filepath.Join(built.dir, "brokerauth")
	if built.dir != "" {
		return path
	}
	dir, err := os.MkdirTemp("", "strangers-")
	if err != nil {
		t.Fatal(err)
	}
	built.dir, path = dir, filepath.Join(dir, "brokerauth")
	args := []string{"build", "-o", path}
	if info, ok := debug.ReadBuildInfo(); ok && slices.Contains(info.Settings, debug.BuildSetting{Key: "-race", Value: "true"}) {
		args = append(args, "-race") // it is compiled already, and two clients at a time may show something
	}
	if out, err := exec.Command("go", append(args, "../../cmd/brokerauth")...).CombinedOutput(); err != nil {
		t.Fatalf("building the command: %v\n%s", err, out)
	}
	return path
}

// emulate runs "brokerauth emulate" over TLS until the test ends. It returns the settings for a client's environment, and
// counts the token calls that were granted.
func emulate(t *testing.T, broker string, flags ...string) (env []string, granted func(grant string) int) {
	t.Helper()
	log := filepath.Join(t.TempDir(), "requests")
	args := append([]string{"emulate", broker, "--tls", "--client-id", appKey, "--client-secret", appSecret, "--log", log}, flags...)
	cmd := exec.Command(command(t), args...)
	cmd.Env = append(os.Environ(), "GORACE=atexit_sleep_ms=0") // else the race detector's second
	var said bytes.Buffer
	cmd.Stderr = &said
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if cmd.Process.Signal(os.Interrupt) != nil { // there is none on Windows
			cmd.Process.Kill()
			cmd.Wait()
			return
		}
		if err := cmd.Wait(); err != nil || said.Len() > 0 {
			t.Errorf("emulate %s ended with %v: %s", broker, err, said.String())
		}
	})
	lines := bufio.NewScanner(out)
	next := func() string {
		if !lines.Scan() {
			t.Fatalf("emulate %s says too little", broker)
		}
		return lines.Text()
	}
	env = []string{"BROKER=" + broker, "APP_KEY=" + appKey, "APP_SECRET=" + appSecret, "BASE=" + next()}
	cert := next()
	env = append(env, "NODE_EXTRA_CA_CERTS="+cert, "REQUESTS_CA_BUNDLE="+cert)
	if broker == "tastytrade" {
		env = append(env, "GRANT="+strings.TrimPrefix(next(), "TASTY_REFRESH_TOKEN="))
	}
	return env, func(grant string) (n int) {
		text, err := os.ReadFile(log)
		if err != nil {
			t.Fatal(err)
		}
		for line := range strings.Lines(string(text)) {
			var r struct {
				Status int
				Grant  string `json:"grant_type"`
			}
			if err := json.Unmarshal([]byte(line), &r); err != nil {
				t.Fatalf("the log has %q", line)
			}
			if r.Status == 200 && r.Grant == grant {
				n++
			}
		}
		return n
	}
}

// Unmodified clients of other people log in, call and refresh. What each of them checks is in its script.
func TestClients(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		name, broker string
		flags        []string
		engine       func(*testing.T) string
		script       string
		logins       int
	}{
		{"@sudowealth/schwab-api", "schwab", nil, node, "schwab.mjs", 2},
		{"@tastytrade/api", "tastytrade", []string{"--access-ttl", "32s"}, node, "tastytrade.mjs", 0},
		{"authlib at Schwab", "schwab", []string{"--access-ttl", "5s"}, python, "authlib_client.py", 1},
		{"authlib at TD Ameritrade", "tdameritrade", []string{"--access-ttl", "5s"}, python, "authlib_client.py", 1},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			engine := test.engine(t)
			// The go command keeps results until a file that a test has read changes.
			for _, name := range []string{test.script, "person.mjs", "package-lock.json"} {
				if _, err := os.ReadFile(name); err != nil {
					t.Fatal(err)
				}
			}
			env, granted := emulate(t, test.broker, test.flags...)
			cmd := exec.CommandContext(t.Context(), engine, test.script)
			cmd.WaitDelay = time.Minute
			cmd.Env = append(os.Environ(), env...)
			if out, err := cmd.CombinedOutput(); err != nil {
				t.Fatalf("%v\n%s", err, out)
			}
			if n := granted("authorization_code"); n != test.logins {
				t.Errorf("%d logins were granted, want %d", n, test.logins)
			}
			if n := granted("refresh_token"); n == 0 {
				t.Error("no refresh was granted")
			}
		})
	}
}
