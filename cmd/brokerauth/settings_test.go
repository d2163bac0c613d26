package main

import (
	"strings"
	"testing"
	"time"
)

func TestParsePeriod(t *testing.T) {
	day := 24 * time.Hour
	for s, want := range map[string]time.Duration{
		"0": 0, "0s": 0, "90s": 90 * time.Second, "2d": 2 * day, "1d12h": 36 * time.Hour, "6.5d": 156 * time.Hour, "1h30m": 90 * time.Minute,
		"0.5d30m": 12*time.Hour + 30*time.Minute,
	} {
		if got, err := parsePeriod(s); got != want || err != nil {
			t.Errorf("parsePeriod(%q) = %v, %v, want %v", s, got, err, want)
		}
	}
	for _, s := range []string{"", "d", "-1d", "-1s", "1d-1h", "1d+1h", "1", "1w", "1e9d", "1000000d", "NaNd", "Infd", "1d1d", "0x1d", "1 d"} {
		if got, err := parsePeriod(s); err == nil {
			t.Errorf("parsePeriod(%q) = %v, want an error", s, got)
		}
	}
}

func FuzzParsePeriod(f *testing.F) {
	for _, s := range []string{"2d", "1d12h", "6.5d", "90s", "-1d", "1e300d", "9223372036s", ".d", "1.2.3d"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		if d, err := parsePeriod(s); err == nil && d < 0 {
			t.Errorf("parsePeriod(%q) = %v", s, d)
		}
	})
}

func TestInWords(t *testing.T) {
	for d, want := range map[time.Duration]string{
		6*24*time.Hour + 2*time.Hour + 59*time.Minute: "6 d 2 h", 24 * time.Hour: "1 d", 23*time.Minute + 59*time.Second: "23 min",
		45 * time.Second: "45 s", 2*time.Hour + 5*time.Minute: "2 h 5 min", -time.Minute: "1 min", 0: "0 s",
	} {
		if got := inWords(d); got != want {
			t.Errorf("inWords(%v) = %q, want %q", d, got, want)
		}
	}
}

func TestParseEnv(t *testing.T) {
	values, err := parseEnv("file", []byte("\ufeffA=1\r\n B = two words # rest\nexport C='it''s'\nD=\"a#b $X\" # x\nE=\nF=#x\nG=a#b\n#H=1\nI\n=2\nA=3\nK=\"open\nL=$A"))
	if err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]string{"A": "3", "B": "two words", "D": "a#b $X", "E": "", "F": "", "G": "a#b", "L": "$A"} {
		if got, ok := values[name]; got != want || !ok {
			t.Errorf("%s is %q, %v, want %q", name, got, ok, want)
		}
	}
	for _, name := range []string{"C", "H", "#H", "I", "", "K"} {
		if got, ok := values[name]; ok {
			t.Errorf("%s is %q, want nothing", name, got)
		}
	}
}

func FuzzParseEnv(f *testing.F) {
	for _, s := range []string{"A=1", "export A='x'", "SCHWAB_APP_SECRET=\"half", "SCHWAB_APP_SECRET='a'b", "\ufeffA=1\r\nB", "=", "A=\"", "#"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		values, err := parseEnv("file", []byte(s))
		if err != nil {
			if strings.Contains(err.Error(), "\n") || len(err.Error()) > 1000 && len(s) < 100 {
				t.Errorf("error %q", err)
			}
			return
		}
		for name, value := range values {
			if name == "" || name != strings.TrimSpace(name) || strings.Contains(value, "\n") {
				t.Errorf("%q = %q", name, value)
			}
		}
	})
}

// Whatever a password is, and however little it was escaped, the name that is shown of its store does not hold it.
func FuzzShown(f *testing.F) {
	for _, password := range []string{"a", "a@b", "1/a", "a?b", "2#a", "%zz", "a:b", "]", "a@1/b", "a&password=b", "\x00", "1?a=b@c", "a://", "//a", "sqlite:"} {
		for _, rest := range []string{"@db.example/logins", "@[::1]:6379/0?addr=h:1"} {
			f.Add("postgres", "me", password, rest)
		}
	}
	f.Fuzz(func(t *testing.T, scheme, user, password, rest string) {
		const mark = "S3CRET"
		if strings.Trim(scheme, "abcdefghijklmnopqrstuvwxyz+") != "" || scheme == "" || strings.ContainsAny(user, "/?#@:") ||
			strings.Contains(scheme+user+rest, mark) || !strings.HasPrefix(rest, "@") {
			return
		}
		address := user + ":" + password + mark + rest
		names := []string{scheme + "://" + address, "sqlite:" + rest + "?" + address}
		if bare := strings.TrimPrefix(address, "sealed+"); !strings.HasPrefix(bare, "disk:") && !isDatabaseName(bare) {
			names = append(names, address, "sealed+"+address) // the scheme is forgotten, and user is not one
		}
		for _, name := range names {
			if got := shown(name); strings.Contains(got, mark) {
				t.Errorf("%q is shown as %q", name, got)
			}
		}
	})
}
