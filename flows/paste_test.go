package flows_test

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"strings"
	"testing"
	"testing/iotest"
	"time"
	"unicode"

	"github.com/google/go-cmp/cmp"

	"github.com/brokerauth/brokerauth"
	"github.com/brokerauth/brokerauth/flows"
)

const whole = "https://127.0.0.1:8182/?code=C0.b2F1dGgyLmJkYy5zY2h3YWIuY29t.abc-_%40&session=7d&state=" + state

var pasteLogin = &brokerauth.Login{URL: "https://broker.example/authorize", RedirectURL: "https://127.0.0.1:8182", State: state}

// paste runs a Paste flow and returns what finish got, which it refuses as no callback until it gets want.
func paste(t *testing.T, login *brokerauth.Login, in io.Reader, want string) (got []string, out string, err error) {
	t.Helper()
	shown := new(text)
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	err = flows.Paste(&flows.Options{In: in, Out: shown})(ctx, login, func(_ context.Context, callback string) error {
		got = append(got, callback)
		if callback == want {
			return nil
		}
		return &brokerauth.Error{Provider: "schwab", Op: "login", Err: errors.New("no callback"), Hint: "copy the whole address"}
	})
	return got, shown.String(), err
}

func TestPasted(t *testing.T) {
	half := strings.Index(whole, "&session")
	inState := len(whole) - 5
	for _, test := range []struct {
		name, in string
		want     []string // what finish gets, line by line
	}{
		{"whole", whole, []string{whole}},
		{"spaces", "  \t" + whole + "  ", []string{whole}},
		{"Windows line end", whole + "\r", []string{whole}},
		{"double quotes", `"` + whole + `"`, []string{whole}},
		{"single quotes", "'" + whole + "'", []string{whole}},
		{"word processor's quotes", "“" + whole + "”", []string{whole}},
		{"back quotes", "`" + whole + "`", []string{whole}},
		{"angle brackets", "<" + whole + ">", []string{whole}},
		{"brackets in quotes", `"<` + whole + `>"`, []string{whole}},
		{"no-break spaces", "\u00a0" + whole + "\u00a0", []string{whole}},
		{"byte order mark", "\ufeff" + whole, []string{whole}},
		{"zero-width space", whole[:half] + "\u200b" + whole[half:], []string{whole}},
		{"bracketed paste", "\x1b[200~" + whole + "\x1b[201~", []string{whole}},
		{"query", whole[strings.Index(whole, "?"):], []string{whole[strings.Index(whole, "?"):]}},
		{"query without mark", whole[strings.Index(whole, "code"):], []string{whole[strings.Index(whole, "code"):]}},
		{"bare code", "C0.abc@", []string{"C0.abc@"}},
		{"bare escaped code", "C0.abc%40", []string{"C0.abc%40"}},
		{"trailing %40", "https://127.0.0.1:8182/?state=" + state + "&code=C0.abc%40", []string{"https://127.0.0.1:8182/?state=" + state + "&code=C0.abc%40"}},
		{"trailing @", "https://127.0.0.1:8182/?state=" + state + "&code=C0.abc@", []string{"https://127.0.0.1:8182/?state=" + state + "&code=C0.abc@"}},
		{"refusal", "https://127.0.0.1:8182/?error=access_denied", []string{"https://127.0.0.1:8182/?error=access_denied"}},
		{"wrong state", "https://127.0.0.1:8182/?code=c&state=another", []string{"https://127.0.0.1:8182/?code=c&state=another"}},
		{"empty lines first", "\n \n\"\"\n" + whole, []string{whole}},
		{"wrapped", whole[:half] + "\n" + whole[half:], []string{whole}},
		{"wrapped and indented", whole[:half] + "\n    " + whole[half:], []string{whole}},
		{"wrapped in the host", whole[:16] + "\r\n" + whole[16:], []string{whole}},
		{"wrapped in the state", whole[:inState] + "\n" + whole[inState:], []string{whole}},
		{"wrapped twice", whole[:40] + "\n" + whole[40:60] + "\n" + whole[60:], []string{whole}},
		{"wrapped in quotes", `"` + whole[:half] + "\n" + whole[half:] + `"`, []string{whole}},
		{"wrapped query", whole[23:half] + "\n" + whole[half:], []string{whole[23:]}},
		{"cut, then whole", whole[:half] + "\n" + whole, []string{whole}},
		{"cut, then taken as it is", whole[:half] + "\n\n" + whole, []string{whole[:half], whole}},
		{"cut at the end of the input", whole[:half], []string{whole[:half]}},
		{"space inside", whole[:half] + " " + whole[half:], []string{whole}},
		{"something else first", "hello there\n" + whole, []string{"hellothere", whole}},
		{"invalid UTF-8", "\xff" + "code\n" + whole, []string{"\ufffdcode", whole}},
		{"far too long first", strings.Repeat("x", 70<<10) + "\n" + whole, []string{whole}},
	} {
		t.Run(test.name, func(t *testing.T) {
			want := test.want[len(test.want)-1]
			// With and without a line end, in one piece and byte by byte.
			for _, in := range []io.Reader{strings.NewReader(test.in), strings.NewReader(test.in + "\n"), iotest.OneByteReader(strings.NewReader(test.in))} {
				got, _, err := paste(t, pasteLogin, in, want)
				if err != nil {
					t.Errorf("the flow: %v", err)
				}
				if diff := cmp.Diff(test.want, got); diff != "" {
					t.Errorf("finish got (-want +got):\n%s", diff)
				}
			}
		})
	}
}

func TestPastedWithoutState(t *testing.T) {
	login := *pasteLogin
	login.State = ""
	const address = "https://127.0.0.1/?code=03%40A%2FB"
	for _, in := range []string{address, address[:20] + "\n" + address[20:]} {
		if got, _, err := paste(t, &login, strings.NewReader(in), address); err != nil || len(got) != 1 {
			t.Errorf("%q: %v, finish got %q", in, err, got)
		}
	}
}

func TestPasteShows(t *testing.T) {
	_, out, err := paste(t, pasteLogin, strings.NewReader("nonsense\n"+whole), whole)
	if err != nil {
		t.Error(err)
	}
	for _, want := range []string{pasteLogin.URL, "30 seconds", "copy the whole address"} {
		if !strings.Contains(out, want) {
			t.Errorf("the text has no %q:\n%s", want, out)
		}
	}
}

func TestPasteReadsOneLine(t *testing.T) {
	in := bufio.NewReaderSize(strings.NewReader(whole+"\nnext\n"), 16)
	if _, _, err := paste(t, pasteLogin, in, whole); err != nil {
		t.Error(err)
	}
	if line, err := in.ReadString('\n'); line != "next\n" {
		t.Errorf("the program's next line is %q, %v", line, err)
	}
}

func TestPasteEnds(t *testing.T) {
	for _, in := range []string{"", "\n", "hello\n", "hello"} {
		if _, _, err := paste(t, pasteLogin, strings.NewReader(in), whole); !errors.Is(err, io.ErrUnexpectedEOF) {
			t.Errorf("after %q: %v, want ErrUnexpectedEOF", in, err)
		}
	}
	if _, _, err := paste(t, pasteLogin, noProgress{}, whole); err == nil {
		t.Error("a reader that never reads ended a login well")
	}
}

type noProgress struct{}

func (noProgress) Read([]byte) (int, error) { return 0, nil }

// What another address cannot mend is not asked again.
func TestPasteFinal(t *testing.T) {
	for _, test := range []struct {
		err   error
		final bool
	}{
		{&brokerauth.Error{Op: "login", Err: errors.New("the address holds no code")}, false},
		{errors.New("schwab: the new token works in this program but could not be saved: no space left on device"), true},
		{&brokerauth.Error{Op: "login", Status: 400, Code: "invalid_grant"}, true},
		{&brokerauth.Error{Op: "login", Code: "access_denied"}, true},
		{&brokerauth.Error{Op: "login", Kind: brokerauth.ErrUnavailable}, true},
		{fmt.Errorf("save: %w", brokerauth.ErrUnavailable), true},
		{fmt.Errorf("save: %w", &fs.PathError{Op: "write", Path: "login", Err: errors.New("no space left")}), true},
		{fmt.Errorf("save: %w", fs.ErrPermission), true},
		{context.Canceled, true},
	} {
		calls := 0
		err := flows.Paste(&flows.Options{In: strings.NewReader("one\ntwo\n"), Out: io.Discard})(t.Context(), pasteLogin, func(context.Context, string) error {
			calls++
			return test.err
		})
		if test.final && (calls != 1 || err != test.err) {
			t.Errorf("%v: asked %d times, ended with %v, want it at once", test.err, calls, err)
		}
		if !test.final && (calls != 2 || !errors.Is(err, io.ErrUnexpectedEOF)) {
			t.Errorf("%v: asked %d times, ended with %v, want all lines tried", test.err, calls, err)
		}
	}
}

// A reader that cannot be stopped must not hold the caller.
func TestPasteCancelled(t *testing.T) {
	r, w := io.Pipe()
	defer w.Close()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	done := make(chan error, 1)
	go func() { done <- flows.Paste(&flows.Options{In: r, Out: io.Discard})(ctx, pasteLogin, saved) }()
	select {
	case err := <-done:
		if !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("the flow: %v, want DeadlineExceeded", err)
		}
	case <-time.After(30 * time.Second):
		t.Error("the flow still waits for its reader")
	}
}

func FuzzPaste(f *testing.F) {
	for _, s := range []string{
		whole, "C0.abc@", "\"" + whole + "\"\r", whole[:50] + "\n" + whole[50:], "\x1b[200~x", "code=", "?", "https://", "http://[", "a\x00b", "\xff",
		"\x1b\x1b[200~[200~x", "“ x ”", "state=" + state, "\n\n",
	} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		var got []string
		finish := func(_ context.Context, callback string) error {
			got = append(got, callback)
			return &brokerauth.Error{Err: errors.New("no callback")}
		}
		err := flows.Paste(&flows.Options{In: strings.NewReader(s), Out: io.Discard})(t.Context(), pasteLogin, finish)
		if !errors.Is(err, io.ErrUnexpectedEOF) {
			t.Fatalf("the flow: %v, want ErrUnexpectedEOF", err)
		}
		for _, callback := range got {
			if callback == "" || strings.ContainsFunc(callback, func(r rune) bool { return unicode.IsSpace(r) || unicode.IsControl(r) }) {
				t.Errorf("finish got %q", callback)
			}
		}
		// What was cleaned is clean.
		again := got
		got = nil
		for _, callback := range again {
			got = nil
			_ = flows.Paste(&flows.Options{In: strings.NewReader(callback), Out: io.Discard})(t.Context(), pasteLogin, finish)
			if len(got) != 1 || got[0] != callback {
				t.Errorf("pasted again, %q becomes %q", callback, got)
			}
		}
	})
}
