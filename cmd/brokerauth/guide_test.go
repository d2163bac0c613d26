package main

import (
	"cmp"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/brokerauth/brokerauth/conformance/emulator"
	"github.com/brokerauth/brokerauth/internal/guide"
)

// The docs have what a login that nobody came back from prints.
func TestTroubleshootingStuck(t *testing.T) {
	lines := []string{"```text"}
	for _, b := range brokers() {
		if b.stuck != "" {
			lines = append(lines, strings.TrimSuffix(b.stuck, "\n"))
		}
	}
	guide.Check(t, "../../docs/troubleshooting.md", "stuck", append(lines, "```"))
}

var (
	subcommand  = regexp.MustCompile(`(?m)^  ([a-z]+)  +[A-Z]`)
	commandLine = regexp.MustCompile("\\bbrokerauth ([a-z]+)\\b([^`|\n;#)]*)")
	flagName    = regexp.MustCompile(`(?:^| )(--[a-z-]+)`)
	settingName = regexp.MustCompile(`\b(?:SCHWAB|TD|TASTY|BROKERAUTH)_[A-Z_]+\b`)
	docLink     = regexp.MustCompile(`\]\(([^)#:]*)(?:#([^)]*))?\)`)
)

// Every command line, setting and link in the docs is one.
func TestDocs(t *testing.T) {
	t.Parallel()
	p := newPlace(t, emulator.Config{})
	help := p.must(0, "--help").out
	helps := make(map[string]string)
	for _, m := range subcommand.FindAllStringSubmatch(help, -1) {
		helps[m[1]] = p.must(0, m[1], "--help").out
		for _, sub := range subcommand.FindAllStringSubmatch(helps[m[1]], -1) {
			helps[m[1]] += p.must(0, m[1], sub[1], "--help").out
		}
	}
	known := make(map[string]bool) // what other programs set, or keep sets for others
	for _, name := range strings.Fields(`TD_CONSUMER_KEY TD_CONFIG_DIR TD_LOG_LEVEL BROKERAUTH_EVENT BROKERAUTH_BROKER BROKERAUTH_PROFILE
		BROKERAUTH_LOGIN_BY BROKERAUTH_WITHIN BROKERAUTH_MESSAGE`) {
		known[name] = true
	}
	pages, err := filepath.Glob("../../docs/*.md")
	if err != nil {
		t.Fatal(err)
	}
	lines := 0
	for _, page := range append(pages, "../../README.md") {
		raw, err := os.ReadFile(page)
		if err != nil {
			t.Fatal(err)
		}
		name, text := filepath.Base(page), string(raw)
		for _, m := range commandLine.FindAllStringSubmatch(text, -1) {
			of, ok := helps[m[1]]
			if !ok {
				if strings.Contains(m[2], "--") || regexp.MustCompile("`brokerauth "+m[1]).MatchString(text) {
					t.Errorf("%s: %q is no command", name, m[0])
				}
				continue // it is prose
			}
			lines++
			for _, flag := range flagName.FindAllStringSubmatch(m[2], -1) {
				if !strings.Contains(of, flag[1]+" ") && !strings.Contains(of, flag[1]+"\n") {
					t.Errorf("%s: %q: there is no %s", name, m[0], flag[1])
				}
			}
		}
		for _, s := range settingName.FindAllString(text, -1) {
			if s = strings.TrimSuffix(s, "_FILE"); !known[s] && !strings.HasSuffix(s, "_") && !strings.Contains(help, s) {
				t.Errorf("%s: %s is no setting", name, s)
			}
		}
		for _, m := range docLink.FindAllStringSubmatch(text, -1) {
			to := cmp.Or(m[1], name)
			if _, err := os.Stat(filepath.Join(filepath.Dir(page), to)); err != nil {
				t.Errorf("%s: a link leads to %s, which is not there", name, to)
			} else if m[2] != "" {
				checkSee(t, docs+to+"#"+m[2])
			}
		}
	}
	if lines < 50 {
		t.Errorf("%d command lines were found in the docs, which is too few to be all", lines)
	}
}
