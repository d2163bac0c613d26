// Package guide keeps docs/troubleshooting.md true to the code, for the tests of the packages that it tells of.
package guide

import (
	"errors"
	"fmt"
	"os"
	"strings"
	"testing"

	"github.com/brokerauth/brokerauth"
	"github.com/brokerauth/brokerauth/providers/authcode"
)

// Check fails the test unless the page at path has lines between the comments "<!-- NAME -->" and "<!-- /NAME -->".
// With UPDATE_DOCS set it puts them there.
func Check(t *testing.T, path, name string, lines []string) {
	t.Helper()
	raw, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	begin, end := "<!-- "+name+" -->\n", "<!-- /"+name+" -->\n"
	before, rest, found := strings.Cut(string(raw), begin)
	is, after, ended := strings.Cut(rest, end)
	if !found || !ended {
		t.Fatalf("%s has no part between %q and %q", path, strings.TrimSpace(begin), strings.TrimSpace(end))
	}
	want := strings.Join(lines, "\n") + "\n"
	if is == want {
		return
	}
	if os.Getenv("UPDATE_DOCS") == "" {
		t.Fatalf("%s: the part %s is not what the code says: run this test with UPDATE_DOCS=1; it would be:\n%s", path, name, want)
	}
	if err := os.WriteFile(path, []byte(before+begin+want+end+after), 0o644); err != nil {
		t.Fatal(err)
	}
}

// Rules are the lines of a table of what a broker says, the exit code of the command, and what to do.
func Rules(rules []authcode.Rule) []string {
	lines := []string{"| the broker says | exit code | what to do |", "| --- | --- | --- |"}
	for _, r := range rules {
		var said []string
		if r.Status != 0 {
			said = append(said, fmt.Sprintf("HTTP %d", r.Status))
		}
		for _, text := range []string{r.Code, r.Contains} {
			if text != "" {
				said = append(said, "`"+text+"`")
			}
		}
		at := ""
		if r.Op != "" {
			at = ", at a " + r.Op
		}
		hint := r.Hint
		if hint == "" {
			hint = "log in again: the error says whether the login's time was over or it ended early, and what usually causes that"
		}
		lines = append(lines, fmt.Sprintf("| %s%s | %d | %s |", strings.Join(said, " with "), at, code(r), hint))
	}
	return lines
}

// code is what the command exits with.
func code(r authcode.Rule) int {
	switch {
	case errors.Is(r.Kind, brokerauth.ErrLoginRequired):
		return 3
	case errors.Is(r.Kind, brokerauth.ErrRejected):
		return 2
	}
	return 4
}
