//go:build unix

package flows_test

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/brokerauth/brokerauth/flows"
)

// browser puts a program in $BROWSER that writes what it was given to a file, which appears when it is complete.
func browser(t *testing.T, format string) (seen string) {
	t.Helper()
	dir := t.TempDir()
	seen = filepath.Join(dir, "seen")
	script := fmt.Sprintf("#!/bin/sh\n"+
		"{ echo \"args $*\"; env; [ -t 0 ] && echo 'a terminal'; (: </dev/tty) && echo 'a terminal'; } >%[1]q.tmp 2>/dev/null\n"+
		"echo noise; echo noise >&2\nmv %[1]q.tmp %[1]q\n", seen)
	path := filepath.Join(dir, "browser")
	if err := os.WriteFile(path, []byte(script), 0o700); err != nil {
		t.Fatal(err)
	}
	t.Setenv("BROWSER", fmt.Sprintf(format, path))
	return seen
}

// system runs a Browser or Auto flow that opens the browser itself, until until returns true, and returns its text.
func system(t *testing.T, flow string, until func(out string) bool) string {
	t.Helper()
	config := home(t)
	login := newLogin(t, "https://127.0.0.1:%d/cb")
	out, done := new(text), make(chan error, 1)
	o := &flows.Options{In: noInput, Out: out}
	go func() {
		if flow == "Auto" {
			done <- flows.Auto(o)(t.Context(), login, saved)
		} else {
			done <- flows.Browser(o)(t.Context(), login, saved)
		}
	}()
	for end := time.Now().Add(30 * time.Second); !until(out.String()); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			t.Errorf("the browser was not opened:\n%s", out)
			break
		}
	}
	get(t, client(t, config), callback(login))
	if err := <-done; err != nil {
		t.Error(err)
	}
	return out.String()
}

func TestSystemBrowser(t *testing.T) {
	for i, test := range []struct{ flow, format, want string }{
		{"Browser", "%s", "args https://127.0.0.1:"},
		{"Browser", "/nonexistent/browser:%s", "args https://127.0.0.1:"},
		{"Browser", "%s --new-window", "args --new-window https://127.0.0.1:"},
		{"Browser", "%s --app=%%s --x", "args --app=https://127.0.0.1:"},
		{"Browser", "%s $(touch /nonexistent) ; `id`", "args $(touch /nonexistent) ; `id` https://127.0.0.1:"},
		{"Auto", "%s", "args https://127.0.0.1:"},
	} {
		t.Run(fmt.Sprint(i), func(t *testing.T) {
			t.Setenv("SCHWAB_APP_SECRET", "hunter2")
			t.Setenv("BROKERAUTH_STORE", "postgres://user:hunter2@db")
			seen := browser(t, test.format)
			out := system(t, test.flow, func(string) bool {
				_, err := os.Stat(seen)
				return err == nil
			})
			given, err := os.ReadFile(seen)
			if err != nil {
				t.Fatal(err)
			}
			if !strings.HasPrefix(string(given), test.want) {
				t.Errorf("$BROWSER with %s: the browser was given\n%s\nwant %s", test.format, given, test.want)
			}
			for _, bad := range []string{"hunter2", state, "a terminal"} {
				if strings.Contains(string(given), bad) {
					t.Errorf("the browser has %q", bad)
				}
			}
			if !strings.Contains(string(given), "\nHOME=") {
				t.Error("the browser does not know its user's folder")
			}
			if strings.Contains(out, "noise") || strings.Contains(out, "No browser") {
				t.Errorf("the text is not the flow's own:\n%s", out)
			}
		})
	}
}

func TestSystemBrowserFails(t *testing.T) {
	dir := t.TempDir()
	for _, name := range []string{"w3m", "broken"} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte("#!/bin/sh\nexit 3\n"), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	for _, test := range []struct{ name, browser, want string }{
		{"text browser", filepath.Join(dir, "w3m"), "w3m needs the terminal"},
		{"fails at once", filepath.Join(dir, "broken"), "exit status 3"},
		{"missing", "/nonexistent/browser", "$BROWSER"},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Setenv("BROWSER", test.browser)
			system(t, "Browser", func(out string) bool { return strings.Contains(out, test.want) })
		})
	}
}
