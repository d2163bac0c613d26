//go:build unix

package main

import (
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/brokerauth/brokerauth/conformance/emulator"
)

// keep starts the command, which the returned function ends.
func (p *place) keep(args ...string) (out, errs *buffer, stop func()) {
	p.t.Helper()
	out, errs = &buffer{}, &buffer{}
	cmd := p.command(append([]string{"keep"}, args...)...)
	cmd.Stdout, cmd.Stderr = out, errs
	if err := cmd.Start(); err != nil {
		p.t.Fatal(err)
	}
	return out, errs, func() {
		p.t.Helper()
		cmd.Process.Signal(syscall.SIGTERM)
		if code := exitOf(cmd.Wait()); code != 0 {
			p.t.Errorf("keep: exit code %d\n%s%s", code, out, errs)
		}
		p.mu.Lock()
		defer p.mu.Unlock()
		p.all.WriteString(out.String() + errs.String())
	}
}

// keepFails runs the command, which must end by itself, and returns the line that says why.
func (p *place) keepFails(code int, args ...string) string {
	p.t.Helper()
	var said buffer
	cmd := p.command(append([]string{"keep"}, args...)...)
	cmd.Stdout, cmd.Stderr = &said, &said
	if err := cmd.Start(); err != nil {
		p.t.Fatal(err)
	}
	defer time.AfterFunc(time.Minute, func() { cmd.Process.Kill() }).Stop()
	if got := exitOf(cmd.Wait()); got != code || strings.Count(said.String(), "\n") != 1 {
		p.t.Errorf("keep %s: exit code %d, want %d and one line\n%s", strings.Join(args, " "), got, code, said.String())
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.all.WriteString(said.String())
	return said.String()
}

func TestKeep(t *testing.T) {
	t.Parallel()
	p := newPlace(t, emulator.Config{AccessTTL: 5 * time.Second})
	ran := filepath.Join(p.dir, "ran")
	// The command gets no secret, and every one of the variables.
	flag := "--on-deadline=env >>'" + ran + "'; echo ===== >>'" + ran + "'; echo noise"
	runs := func() []string {
		text, _ := os.ReadFile(ran)
		all := strings.Split(string(text), "=====\n")
		return all[:len(all)-1]
	}

	out, errs, stop := p.keep(flag)
	until(t, "it waits for a login", func() bool { return strings.Contains(errs.String(), "no login to keep yet") })
	p.login()
	until(t, "it keeps the login", func() bool { return strings.Contains(out.String(), "schwab: kept; log in again by") })
	until(t, "it renews it twice", func() bool { return p.calls("refresh_token") >= 2 })
	stop()
	if len(runs()) > 0 {
		t.Errorf("a login of a week was announced: %s", runs())
	}

	end := time.Now().Add(time.Hour + 10*time.Second).UTC().Truncate(time.Second)
	p.edit(func(token map[string]any) {
		token["login_by"], token["logged_in_at"] = end, end.Add(-7*24*time.Hour)
	})
	out, errs, stop = p.keep(flag)
	until(t, "six hours, which are over, and one hour are announced", func() bool { return len(runs()) == 2 })
	second, _, stopSecond := p.keep(flag)
	until(t, "another starts", func() bool { return strings.Contains(second.String(), "kept") })
	for i, within := range []string{"6h", "1h"} {
		wantAll(t, runs()[i], "BROKERAUTH_EVENT=deadline\n", "BROKERAUTH_BROKER=schwab\n", "BROKERAUTH_PROFILE=default\n",
			"BROKERAUTH_LOGIN_BY="+end.Format(time.RFC3339)+"\n", "BROKERAUTH_WITHIN="+within+"\n", "BROKERAUTH_MESSAGE=schwab: log in again by", "HOME=")
	}
	n := p.calls("refresh_token")
	until(t, "they renew it", func() bool { return p.calls("refresh_token") >= n+2 })
	if got := len(runs()); got != 2 {
		t.Errorf("%d runs of the command, want 2: %s", got, runs())
	}
	stopSecond()
	p.broker.RevokeLogins()
	until(t, "the login's end is told", func() bool { return len(runs()) == 3 })
	wantAll(t, runs()[2], "BROKERAUTH_EVENT=ended\n", "BROKERAUTH_WITHIN=\n", "run: brokerauth login schwab")
	stop() // with which all has come that was said
	wantAll(t, out.String(), "schwab: the login has ended: run: brokerauth login schwab")
	wantAll(t, errs.String(), "noise")

	said := p.all.String() + strings.Join(runs(), "")
	for _, secret := range append(p.broker.Secrets(), testSecret, testKey) {
		if strings.Contains(said, secret) {
			t.Errorf("a secret was told: %.12s…", secret)
		}
	}
	p.must(2, "keep", "--store", "memory")
	p.keepFails(1, "--store", "redis://127.0.0.1:1")
	p.must(2, "keep", "schwab")
}

// A command that hangs does not hold keep up for long, and what it has started ends with it.
func TestKeepHangingCommand(t *testing.T) {
	t.Parallel()
	p := newPlace(t, emulator.Config{})
	p.login()
	end := time.Now().Add(time.Hour - time.Minute).UTC().Truncate(time.Second)
	p.edit(func(token map[string]any) {
		token["login_by"], token["logged_in_at"] = end, end.Add(-7*24*time.Hour)
	})
	pipe := filepath.Join(p.dir, "pipe")
	if err := syscall.Mkfifo(pipe, 0o600); err != nil {
		t.Fatal(err)
	}
	_, errs, stop := p.keep("--on-deadline=sleep 300 9>'" + pipe + "' & wait")
	begun, over := make(chan error, 1), make(chan error, 1)
	go func() {
		f, err := os.Open(pipe) // which waits for who writes
		begun <- err
		if err == nil {
			defer f.Close()
			_, err = io.ReadAll(f) // which waits until nobody does
			over <- err
		}
	}()
	for _, wait := range []<-chan error{begun, over} {
		select {
		case err := <-wait:
			if err != nil {
				t.Fatal(err)
			}
		case <-time.After(time.Minute):
			t.Fatalf("a minute later the command has not begun, or not ended:\n%s", errs)
		}
		if wait == begun {
			stop()
		}
	}
	wantAll(t, errs.String(), "waiting for the command of --on-deadline", "--on-deadline: it was ended, because this program was interrupted")
}

// What is stored without its app's settings is named, and left alone.
func TestKeepWithoutSettings(t *testing.T) {
	t.Parallel()
	p := newPlace(t, emulator.Config{AccessTTL: 2 * time.Second})
	p.login()
	_, errs, stop := p.with("SCHWAB_APP_KEY", "").keep()
	until(t, "it names the login", func() bool {
		return strings.Contains(errs.String(), "not kept, because its app's settings are not here")
	})
	stop()
	_, errs, stop = p.with("SCHWAB_APP_KEY", "another-app").keep()
	until(t, "it names the login", func() bool { return strings.Contains(errs.String(), "not kept, because the settings name another app") })
	stop()
	if n := p.calls("refresh_token"); n > 0 {
		t.Errorf("%d refreshes of a login that is not kept", n)
	}
}

// Settings that are there and cannot work are told as such, and end it at the start if nothing else is to be kept.
func TestKeepWithWrongSettings(t *testing.T) {
	t.Parallel()
	p := newPlace(t, emulator.Config{AccessTTL: 2 * time.Second})
	p.login("--profile", "second")
	own := p.write("config/brokerauth/second.env", "SCHWAB_APP_KEY="+testKey, 0o644)
	keep := func(p *place, why string) {
		t.Helper()
		wantAll(t, p.keepFails(2), "not kept, because its app's settings cannot work: ", why)
		r := p.must(0, "status")
		wantAll(t, r.errors, "its settings cannot work: ", why)
		wantAll(t, r.out, "whose settings cannot work", "log in again by")
	}
	keep(p, "chmod 600")
	if err := os.Remove(own); err != nil {
		t.Fatal(err)
	}
	keep(p.with("SCHWAB_CALLBACK_URL", "http://127.0.0.1:8182"), "https")
	keep(p.with("SCHWAB_APP_SECRET", "", "SCHWAB_APP_SECRET_FILE", filepath.Join(p.dir, "none")), "SCHWAB_APP_SECRET_FILE")

	p.login()
	p.write("config/brokerauth/second.env", "SCHWAB_APP_KEY="+testKey, 0o644)
	_, errs, stop := p.keep()
	until(t, "it keeps another login", func() bool { return p.calls("refresh_token") >= 2 })
	stop()
	wantAll(t, errs.String(), "second: not kept, because its app's settings cannot work: ", "chmod 600")
}

// A login that is moved to another store is kept there, and one that went to another machine is left alone: neither has ended.
func TestKeepMoved(t *testing.T) {
	t.Parallel()
	p := newPlace(t, emulator.Config{AccessTTL: 2 * time.Second}).
		with("BROKERAUTH_STORE", "", "DBUS_SESSION_BUS_ADDRESS", "unix:path=/nonexistent/bus")
	from, to := "disk:"+filepath.Join(p.dir, "logins"), "sqlite:"+filepath.Join(p.dir, "db", "logins")
	ran := filepath.Join(p.dir, "ran")
	p.login("--store", from)
	out, errs, stop := p.keep("--on-deadline=echo $BROKERAUTH_EVENT >>'" + ran + "'")
	renewed := func(what string) {
		t.Helper()
		n := p.calls("refresh_token")
		until(t, what, func() bool { return p.calls("refresh_token") >= n+2 })
	}
	renewed("it renews the login")
	p.must(0, "store", "move", from, to)
	renewed("it renews the login at the new place")
	if text := out.String() + errs.String(); strings.Count(text, "kept") != 1 || errs.String() != "" {
		t.Errorf("a move within the computer is told:\n%s", text)
	}
	p.must(0, "export", "schwab", "--move")
	const told = "because it was moved to whoever read the output of brokerauth export"
	until(t, "it lets go of the login", func() bool { return strings.Contains(out.String(), "schwab: no longer kept, "+told) })
	stop()

	again, errs, stop := p.keep("--on-deadline=echo $BROKERAUTH_EVENT >>'" + ran + "'")
	until(t, "it names the login", func() bool { return strings.Contains(errs.String(), "schwab: not kept, "+told) })
	p.login()
	until(t, "it keeps the new login", func() bool { return strings.Contains(again.String(), "schwab: kept") })
	stop()
	for _, text := range []string{out.String(), again.String(), errs.String()} {
		if strings.Contains(text, "ended") || strings.Contains(text, "run: brokerauth login") || strings.Count(text, told) > 1 {
			t.Errorf("of a login that goes on elsewhere it says\n%s", text)
		}
	}
	if text, err := os.ReadFile(ran); err == nil {
		t.Errorf("the command was run: %s", text)
	}
}

// A login that two stores have is kept in the one that it went to last, as all commands take it from there.
func TestKeepInTwoStores(t *testing.T) {
	t.Parallel()
	p := newPlace(t, emulator.Config{AccessTTL: 2 * time.Second}).with("BROKERAUTH_STORE", "", "DBUS_SESSION_BUS_ADDRESS", "unix:path=/nonexistent/bus")
	dirs := []string{filepath.Join(p.dir, "a"), filepath.Join(p.dir, "b")}
	for i, profile := range []string{"one", "two"} {
		p.login("--profile", profile, "--store", "disk:"+dirs[1-i])
		p.login("--profile", profile, "--store", "disk:"+dirs[i])
	}
	records := func(dir, profile string) string {
		t.Helper()
		files, err := filepath.Glob(filepath.Join(dir, "schwab.*."+profile+".json"))
		if err != nil || len(files) != 1 {
			t.Fatalf("%s has %q of %s, %v", dir, files, profile, err)
		}
		text, err := os.ReadFile(files[0])
		if err != nil {
			t.Fatal(err)
		}
		return string(text)
	}
	idle := records(dirs[1], "one") + records(dirs[0], "two")
	first := []string{records(dirs[0], "one"), records(dirs[1], "two")}
	_, _, stop := p.keep()
	until(t, "it renews both", func() bool { return records(dirs[0], "one") != first[0] && records(dirs[1], "two") != first[1] })
	stop()
	if records(dirs[1], "one")+records(dirs[0], "two") != idle {
		t.Error("it keeps a login in the store that it did not go to last")
	}
}

// What comes back is told of as at first.
func TestKeepAgain(t *testing.T) {
	t.Parallel()
	p := newPlace(t, emulator.Config{AccessTTL: 2 * time.Second})
	here, away := "disk:"+filepath.Join(p.dir, "here"), "disk:"+filepath.Join(p.dir, "away")
	p.login("--profile", "second", "--store", here)
	out, errs, stop := p.with("SCHWAB_APP_KEY", "", "BROKERAUTH_STORE", "").keep("--store", here)
	unset, kept, gone := "second: not kept, because its app's settings are not here", "second: kept; log in again by", "second: logged out or moved"
	for n := 1; n <= 2; n++ {
		for _, step := range []struct {
			says string
			on   *buffer
			then func()
		}{
			{unset, errs, func() { p.write("config/brokerauth/second.env", "SCHWAB_APP_KEY="+testKey, 0o600) }},
			{kept, out, func() { p.with("BROKERAUTH_STORE", "").must(0, "store", "move", here, away) }},
			{gone, out, func() {
				if err := os.Remove(filepath.Join(p.dir, "config/brokerauth/second.env")); err != nil {
					t.Fatal(err)
				}
				p.must(0, "store", "move", away, here)
			}},
		} {
			until(t, "it says again: "+step.says, func() bool { return strings.Count(step.on.String(), step.says) == n })
			step.then()
		}
	}
	stop()
}

// That a login has ended is told once more when it comes back as it was.
func TestKeepEndedAgain(t *testing.T) {
	t.Parallel()
	p := newPlace(t, emulator.Config{AccessTTL: 2 * time.Second})
	here, away := "disk:"+filepath.Join(p.dir, "here"), "disk:"+filepath.Join(p.dir, "away")
	p.login("--store", here)
	p.broker.RevokeLogins()
	p.login("--profile", "alive", "--store", here) // which is missed at once: its next renewal fails
	out, _, stop := p.keep("--store", here)
	for n := 1; n <= 2; n++ {
		for _, says := range []string{"schwab: the login has ended: run: ", "alive: kept"} {
			until(t, "it says again: "+says, func() bool { return strings.Count(out.String(), says) == n })
		}
		p.must(0, "store", "move", here, away)
		until(t, "it lets go of the login", func() bool { return strings.Count(out.String(), "schwab: logged out or moved") == n })
		p.must(0, "store", "move", away, here)
	}
	stop()
}

func TestTradingWeek(t *testing.T) {
	zone, err := time.LoadLocation("America/New_York")
	if err != nil {
		t.Fatal(err)
	}
	at := func(s string) time.Time {
		t.Helper()
		m, err := time.ParseInLocation("2006-01-02 15:04", s, zone)
		if err != nil {
			t.Fatal(err)
		}
		return m.UTC()
	}
	// 2026-11-26 is a Thursday.
	for _, test := range []struct{ loginBy, now, want string }{
		{"2026-12-03 09:40", "2026-11-26 09:41", "Thu 09:40 ET is in the middle of a trading week: log in on Sunday"},
		{"2026-12-03 09:40", "2026-11-29 12:00", "Thu 09:40 ET is in the middle of a trading week: log in before Monday 09:30 ET"},
		{"2026-12-03 09:40", "2026-12-01 12:00", "Thu 09:40 ET is in the middle of a trading week: log in before then, after the exchanges close"},
		{"2026-12-03 03:00", "2026-11-26 03:01", "Thu 03:00 ET is in the middle of a trading week: log in on Sunday"},
		{"2026-11-30 09:30", "2026-11-23 09:31", "Mon 09:30 ET is in the middle of a trading week: log in on Sunday"},
		{"2026-12-04 16:00", "2026-11-27 16:01", "Fri 16:00 ET is in the middle of a trading week: log in on Sunday"},
		{"2026-11-30 09:29", "2026-11-23 09:31", ""},                                                                  // before Monday's open
		{"2026-12-04 16:01", "2026-11-27 16:01", ""},                                                                  // after Friday's close
		{"2026-12-06 18:00", "2026-11-29 18:00", ""},                                                                  // a Sunday's login
		{"2026-12-03 09:40", "2026-12-03 09:41", ""},                                                                  // it is over
		{"2027-02-24 09:40", "2026-11-26 09:41", ""},                                                                  // months away
		{"2026-03-11 09:40", "2026-03-04 09:40", "Wed 09:40 ET is in the middle of a trading week: log in on Sunday"}, // over a change of clocks
	} {
		if got := inTradingWeek(at(test.loginBy), at(test.now)); got != test.want {
			t.Errorf("until %s, at %s: %q, want %q", test.loginBy, test.now, got, test.want)
		}
	}
	if got := inTradingWeek(time.Time{}, at("2026-11-26 09:41")); got != "" {
		t.Errorf("a login without an end: %q", got)
	}
}

// A command that keep runs gets no secret that this program knows the name of.
func TestWithoutSettings(t *testing.T) {
	t.Parallel()
	got := withoutSettings([]string{"PATH=/bin", "SCHWAB_APP_SECRET=s", "BROKERAUTH_STORE=redis://u:s@h", "PGPASSWORD=s", "PGHOST=h", "BROWSER=b"})
	if want := []string{"PATH=/bin", "PGHOST=h", "BROWSER=b"}; !slices.Equal(got, want) {
		t.Errorf("%q, want %q", got, want)
	}
}

// A broker's words and a profile's name start no command, whatever the command of --on-deadline does with them.
func TestForShell(t *testing.T) {
	t.Parallel()
	evil := "x & calc | more > f < g ^ %PATH% !PATH! \" y\r\ndel z"
	if got := forShell(evil, "windows"); strings.ContainsAny(got, "&|<>^%!\"\r\n") || !strings.Contains(got, "calc") {
		t.Errorf("for cmd: %q", got)
	}
	if got := forShell(evil, "linux"); got != evil {
		t.Errorf("for sh: %q", got)
	}
}
