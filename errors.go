package brokerauth

import (
	"errors"
	"fmt"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"
)

var (
	// ErrLoginRequired: a person must log in. It is final for the login that is stored: asking the broker again
	// changes nothing until somebody has logged in, in this or any other process that shares the store.
	ErrLoginRequired = errors.New("login required")
	// ErrRejected: the broker refuses the app, the grant or the settings, and a person must change them.
	ErrRejected = errors.New("rejected")
	// ErrUnavailable: the broker or the store cannot be reached or is busy now. Try later; Error.RetryAfter may say when.
	ErrUnavailable = errors.New("unavailable")
	// ErrCorrupt: a stored record cannot be read. It is never overwritten by a refresh; a login sets it aside first.
	ErrCorrupt = errors.New("corrupt")
)

// Error is what a broker refused, or why it could not be asked. Find one with [errors.As].
type Error struct {
	Provider    string        // Info.Name
	Op          string        // "login" or "refresh"
	Kind        error         // ErrLoginRequired, ErrRejected, ErrUnavailable, or nil
	Status      int           // HTTP status of the broker's answer; 0: there was none
	Code        string        // the broker's own error code
	Description string        // the broker's own words, cleaned; never a whole body
	RetryAfter  time.Duration // how long to wait before trying again; 0: unknown
	Hint        string        // what to do
	Err         error         // what lies beneath, such as a network error; may be nil
}

// Error says what happened and what to do, and then in the broker's words why.
func (e *Error) Error() string {
	parts := []string{e.Provider, e.Op}
	if e.Kind != nil {
		parts = append(parts, e.Kind.Error())
	}
	if e.Hint != "" { // perhaps a record's
		parts = append(parts, cleanTo(e.Hint, 1000))
	}
	var why []string
	if e.Status != 0 {
		why = append(why, fmt.Sprintf("HTTP %d", e.Status))
	}
	for _, s := range []string{clean(e.Code), clean(e.Description), underlying(e)} {
		if s != "" {
			why = append(why, s)
		}
	}
	text := strings.Join(parts, ": ")
	if len(why) > 0 {
		text += " (" + strings.Join(why, ": ") + ")"
	}
	if e.RetryAfter > 0 {
		text += fmt.Sprintf("; try again in %s", e.RetryAfter.Round(time.Second))
	}
	return text
}

// Unwrap gives errors.Is and errors.As the kind and what lies beneath.
func (e *Error) Unwrap() []error {
	var errs []error
	for _, err := range []error{e.Kind, e.Err} {
		if err != nil {
			errs = append(errs, err)
		}
	}
	return errs
}

// clean makes text from outside fit for a terminal and a log line: no control characters, no broken UTF-8, no more
// than a few hundred bytes.
func clean(s string) string { return cleanTo(s, 300) }

func cleanTo(s string, most int) string {
	s = strings.Map(func(r rune) rune {
		if r == utf8.RuneError || !unicode.IsPrint(r) {
			return ' '
		}
		return r
	}, s)
	s = strings.Join(strings.Fields(s), " ")
	if len(s) > most {
		s = strings.ToValidUTF8(s[:most], "") + "…"
	}
	return s
}
