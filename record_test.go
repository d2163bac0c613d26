package brokerauth

import (
	"encoding/json"
	"errors"
	"strings"
	"testing"
	"time"
)

func aToken() *Token {
	now := time.Now().UTC().Truncate(time.Second)
	return &Token{AccessToken: "access", TokenType: "Bearer", Issued: now, Expiry: now.Add(30 * time.Minute), RefreshToken: "refresh",
		LoggedInAt: now.Add(-time.Hour), LoginBy: now.Add(7 * 24 * time.Hour), Extra: map[string]string{"scope": "api"}}
}

func TestRecordKeepsWhatItDoesNotKnow(t *testing.T) {
	stored := `{"v":1,"later":{"a":[1,2]},"provider":"x","token":{"access_token":"old","later":true}}`
	r, err := decodeRecord([]byte(stored))
	if err != nil {
		t.Fatal(err)
	}
	claimed, err := r.with(func(c *record) { c.claim = &claim{ID: "me", Since: time.Now()} }).encode("x")
	if err != nil {
		t.Fatal(err)
	}
	for _, kept := range []string{`"later":{"a":[1,2]}`, `{"access_token":"old","later":true}`, `"claim"`} {
		if !strings.Contains(string(claimed), kept) {
			t.Errorf("a claim dropped %s: %s", kept, claimed)
		}
	}
	r, err = decodeRecord(claimed)
	if err != nil {
		t.Fatal(err)
	}
	renewed, err := r.withToken(aToken(), false).encode("x")
	if err != nil {
		t.Fatal(err)
	}
	if s := string(renewed); !strings.Contains(s, `"later":{"a":[1,2]}`) || strings.Contains(s, "claim") || strings.Contains(s, "old") {
		t.Errorf("a new token: %s", s)
	}
}

func TestRecordThatCannotBeRead(t *testing.T) {
	for text, want := range map[string]error{
		"": ErrCorrupt, "{": ErrCorrupt, "null": ErrCorrupt, "[]": ErrCorrupt, "{}": ErrCorrupt, `{"v":"1"}`: ErrCorrupt, `{"v":0}`: ErrCorrupt,
		`{"v":1,"token":[]}`: ErrCorrupt, `{"v":1,"token":{}}`: ErrCorrupt, `{"v":1,"token":{"access_token":"a\nb"}}`: ErrCorrupt,
		`{"v":1,"token":{"access_token":"a","token_type":"Bearer\nX-Other: a"}}`: ErrCorrupt,
		`{"v":1,"claim":"x"}`: ErrCorrupt, `{"v":2}`: errors.ErrUnsupported, `{"v":2,"token":"of another form"}`: errors.ErrUnsupported,
	} {
		if _, err := decodeRecord([]byte(text)); !errors.Is(err, want) {
			t.Errorf("%s: %v, want %v", text, err, want)
		}
	}
}

func FuzzRecord(f *testing.F) {
	full, err := (&record{token: aToken(), claim: &claim{ID: "c"}, verdict: &verdict{Kind: "unavailable"}, doubt: time.Now(),
		forced: []time.Time{time.Now()}, told: &told{LoginBy: time.Now(), Within: 3600}}).encode("schwab")
	if err != nil {
		f.Fatal(err)
	}
	f.Add(full)
	f.Add(full[:len(full)/2])
	f.Add([]byte(`{"v":1,"token":null,"claim":null,"verdict":null}`))
	f.Fuzz(func(t *testing.T, raw []byte) {
		r, err := decodeRecord(raw)
		if err != nil {
			if !errors.Is(err, ErrCorrupt) && !errors.Is(err, errors.ErrUnsupported) {
				t.Errorf("an error of no kind: %v", err)
			}
			return
		}
		again, err := r.encode("schwab")
		if err != nil {
			return // a time that JSON cannot write
		}
		if _, err := decodeRecord(again); err != nil {
			t.Errorf("%s was written as %s, which is %v", raw, again, err)
		}
		r.verdictFor("")
	})
}

func TestDeadlineBelievesBothClocks(t *testing.T) {
	now := time.Now()
	for name, test := range map[string]struct {
		d    deadline
		want bool
	}{
		"before":                        {in(now, time.Minute), false},
		"after":                         {in(now, -time.Minute), true},
		"the laptop slept":              {deadline{at: now.Add(time.Hour), wall: now.Add(-time.Hour).UnixNano()}, true},
		"the wall clock was set back":   {deadline{at: now.Add(-time.Hour), wall: now.Add(time.Hour).UnixNano()}, true},
		"a token that does not expire":  {newPublished(&Token{AccessToken: "a"}, Info{}, now).renew, false},
		"issued by a host that is late": {newPublished(&Token{Issued: now.Add(-20 * time.Minute), Expiry: now.Add(-time.Minute)}, Info{}, now).dead, true},
	} {
		if got := test.d.passed(now); got != test.want {
			t.Errorf("%s: passed = %t", name, got)
		}
	}
	ahead := &Token{Issued: now.Add(20 * time.Minute), Expiry: now.Add(50 * time.Minute)}
	if p := newPublished(ahead, Info{}, now); p.dead.at.Sub(now) != 30*time.Minute {
		t.Errorf("a token of 30 minutes, from a host that is ahead, lives %s", p.dead.at.Sub(now))
	}
}

// A token that was just handed out is no longer once either clock says that it is due: by the monotonic one at once, by the
// wall clock after a glance's time.
func TestTokenBelievesBothClocks(t *testing.T) {
	for name, due := range map[string]func(p *published){
		"the laptop slept": func(p *published) {
			p.renew.wall = time.Now().UnixNano()
			time.Sleep(glance)
		},
		"the wall clock was set back": func(p *published) {
			p.renew.at = time.Now()
			p.seen.Store(1) // it was looked at a moment before
		},
	} {
		s, now := new(Session), time.Now()
		s.current.Store(newPublished(aToken(), Info{}, now))
		for range 2 { // by a look at both clocks, and by one at the monotonic one
			if s.fresh() == nil {
				t.Fatal("a token of half an hour is not fresh")
			}
		}
		if due(s.current.Load()); s.fresh() != nil {
			t.Errorf("%s: the token is still handed out", name)
		}
	}
	if s := new(Session); s.fresh() != nil {
		t.Error("a token out of nowhere")
	}
}

func TestTokenPrintsNoSecret(t *testing.T) {
	token := aToken()
	text, err := json.Marshal(map[string]any{"token": token, "value": *token})
	if err != nil {
		t.Fatal(err)
	}
	if s := string(text); strings.Contains(s, `"access"`) || strings.Contains(s, `"refresh"`) || !strings.Contains(s, "REDACTED(fp:") {
		t.Errorf("%s", s)
	}
	if o := token.OAuth2(); o.AccessToken != "access" || o.RefreshToken != "refresh" || o.Extra("scope") != "api" || !o.Expiry.Equal(token.Expiry) {
		t.Error("OAuth2 dropped something")
	}
}

func TestErrorTextIsClean(t *testing.T) {
	e := &Error{Provider: "schwab", Op: "refresh", Kind: ErrUnavailable, Code: "x\x1b[31m", Description: "a\r\nb\u202e\x00" + strings.Repeat("y", 1000)}
	if s := e.Error(); strings.ContainsAny(s, "\x1b\r\n\x00\u202e") || len(s) > 500 {
		t.Errorf("%q", s)
	}
}
