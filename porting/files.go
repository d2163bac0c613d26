package porting

import (
	"cmp"
	"os"
	"path/filepath"
	"strings"
)

// Files returns the files that exist where the older libraries keep tokens, in the user's own folders and in the
// working directory. It reads none of them: what they hold, [Read] tells. A place that cannot be looked into is left out.
// schwab-py and tda-api have no usual place.
func Files() []string {
	home, err := os.UserHomeDir()
	if err != nil {
		home = "" // the working directory is still there
	}
	var found []string
	add := func(path string) {
		if info, err := os.Stat(path); err == nil && info.Mode().IsRegular() {
			found = append(found, path)
		}
	}
	all := func(dir, ending string) {
		entries, _ := os.ReadDir(dir)
		for _, e := range entries {
			if strings.HasSuffix(e.Name(), ending) && !strings.HasSuffix(e.Name(), ".log") && e.Name()[0] != '.' {
				add(filepath.Join(dir, e.Name()))
			}
		}
	}
	if home != "" {
		config := cmp.Or(os.Getenv("XDG_CONFIG_HOME"), filepath.Join(home, ".config"))
		add(filepath.Join(home, ".schwabdev", "tokens.db"))
		add(filepath.Join(config, "schwab-agent", "token.json"))
		add(filepath.Join(home, ".config", "go-schwab", ".json"))
		all(filepath.Join(home, ".td_python_api"), ".json")
		all(filepath.Join(home, ".td_python_library"), ".json")
	}
	// pyTD names the file by the consumer key.
	if dir := expand(cmp.Or(os.Getenv("TD_CONFIG_DIR"), "~/.tdm"), home); dir != "" {
		all(dir, "")
	}
	add("tokens.json")   // Schwabdev 2
	add("td_state.json") // td-ameritrade-python-api, by convention
	return found
}

// expand replaces a leading ~, as Python's expanduser does; empty: there is no home.
func expand(path, home string) string {
	if rest, ok := strings.CutPrefix(path, "~"); ok && (rest == "" || rest[0] == '/') {
		if home == "" {
			return ""
		}
		return filepath.Join(home, rest)
	}
	return path
}
