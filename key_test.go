package brokerauth_test

import (
	"encoding/json"
	"math/rand/v2"
	"strings"
	"testing"

	"github.com/brokerauth/brokerauth"
)

func TestKeysNeverCollide(t *testing.T) {
	parts := []string{"", "a", "A", "aux", "AUX", "con", "com1", "a:b", "a.b", "a/b", `a\b`, "..", ".", "~", "=", "=61", " ", "ü", "u\u0308",
		"default", "Default", "\x00", "\n", strings.Repeat("x", 64), "%", "a%2fb", "-", "_", "*", "?"}
	r := rand.New(rand.NewPCG(1, 2))
	part := func() string {
		if r.IntN(2) == 0 {
			return parts[r.IntN(len(parts))]
		}
		b := make([]byte, r.IntN(20))
		for i := range b {
			b[i] = byte(r.IntN(256))
		}
		return string(b)
	}
	seen := map[string]brokerauth.Key{}
	for range 10_000 {
		key := brokerauth.Key{Provider: part(), Identity: part(), Profile: part()}
		if key.Validate() != nil {
			continue
		}
		name := key.String()
		if strings.ToLower(name) != name || strings.ContainsAny(name, `<>:"/\|?*% `) || strings.HasSuffix(name, ".") || len(name) > 240 {
			t.Fatalf("%q is not a file name everywhere", name)
		}
		if first, _, _ := strings.Cut(name, "."); first == "aux" || first == "con" || first == "com1" {
			t.Fatalf("%q is a device on Windows", name)
		}
		if other, ok := seen[name]; ok && other != key {
			t.Fatalf("%#v and %#v are both %q", key, other, name)
		}
		seen[name] = key
		if back, err := brokerauth.ParseKey(name); err != nil || back != key {
			t.Fatalf("ParseKey(%q) = %#v, %v, want %#v", name, back, err, key)
		}
	}
	if len(seen) < 5000 {
		t.Errorf("only %d keys were tried", len(seen))
	}
}

func TestKeysThatNoStoreCanHold(t *testing.T) {
	long := strings.Repeat("x", 65)
	for _, key := range []brokerauth.Key{
		{}, {Identity: "a", Profile: "b"}, {Provider: long}, {Provider: "a", Identity: long}, {Provider: "a", Profile: long},
		{Provider: "a", Identity: strings.Repeat("ü", 32), Profile: strings.Repeat("ü", 32)},
	} {
		if key.Validate() == nil {
			t.Errorf("%#v is valid", key)
		}
	}
	if err := (brokerauth.Key{Provider: "schwab", Identity: strings.Repeat("a", 64), Profile: strings.Repeat("b", 64)}).Validate(); err != nil {
		t.Error(err)
	}
}

func TestKeyInJSON(t *testing.T) {
	want := map[brokerauth.Key]brokerauth.Key{{Provider: "schwab", Profile: "Ann"}: {Provider: "~probe"}}
	text, err := json.Marshal(want)
	must(t, err)
	var got map[brokerauth.Key]brokerauth.Key
	must(t, json.Unmarshal(text, &got))
	for k, v := range want {
		if got[k] != v {
			t.Errorf("%s became %v", text, got)
		}
	}
}

func FuzzParseKey(f *testing.F) {
	for _, s := range []string{"schwab.0123456789abcdef.default", "=.=.=", "~probe.=.x", "=61ux.=.=", "a.b", "a.=6.c", "a.=zz.c", "A.b.c"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		key, err := brokerauth.ParseKey(s)
		if err == nil && key.String() != s {
			t.Errorf("%q is read as %#v, which is %q", s, key, key)
		}
	})
}
