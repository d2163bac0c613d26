package flows

import (
	"errors"
	"io"
	"io/fs"
	"net/url"
	"os"
	"strings"
	"time"
	"unicode"
)

// maxAddress is far more than any address needs.
const maxAddress = 16 << 10

// terminalLine is what Linux lets through of a longer line that is typed or pasted: see termios(3), "canonical mode".
const terminalLine = 4095

// input is where pasted addresses come from. A nil *input has none.
type input struct {
	io.Reader
	terminal  bool
	interrupt func()        // makes a Read that waits return; nil: nothing can
	done      func()        // undoes interrupt, or closes the terminal
	reading   chan struct{} // closed when the last line has been read
}

// line is one line that was read, without its end. With an error, usually io.EOF, it is what was left.
type line struct {
	text  string
	fault string // why it is of no use
	err   error
}

// input returns nil, and an error that says why, if there is none. Only a patient caller is given one that cannot be
// interrupted.
func (o *Options) input(patient bool) (*input, error) {
	if o.In == nil {
		in, err := openTerminal()
		if err != nil {
			return nil, says(fs.ErrNotExist, "there is no terminal to paste into: run this in one, "+
				"or register a redirect address on this computer, such as https://127.0.0.1:8182, and listen there")
		}
		return in, nil
	}
	in := &input{Reader: o.In, done: func() {}}
	if f, ok := o.In.(*os.File); ok {
		info, err := f.Stat()
		in.terminal = err == nil && info.Mode()&os.ModeCharDevice != 0
	}
	if d, ok := o.In.(interface{ SetReadDeadline(time.Time) error }); ok && d.SetReadDeadline(time.Time{}) == nil {
		in.interrupt = func() { d.SetReadDeadline(time.Unix(1, 0)) }
		in.done = func() { d.SetReadDeadline(time.Time{}) }
	} else if !patient {
		return nil, says(errors.ErrUnsupported, "reading from Options.In cannot be stopped")
	}
	return in, nil
}

// next reads a line. The one before must have been received: so nothing is read ahead.
func (in *input) next() <-chan line {
	c := make(chan line, 1)
	read := make(chan struct{})
	in.reading = read
	go func() {
		defer close(read)
		c <- in.line()
	}()
	return c
}

// close stops reading.
func (in *input) close() {
	if in == nil {
		return
	}
	if in.reading != nil && in.interrupt != nil {
		select {
		case <-in.reading:
		default:
			in.interrupt()
			<-in.reading
		}
	}
	in.done()
}

func (in *input) line() line {
	var text []byte
	long := false
	for c, idle := make([]byte, 1), 0; ; {
		n, err := in.Read(c) // one byte, lest the program's next line is taken too
		switch {
		case n > 0 && c[0] == '\n' || err != nil:
			l := line{text: string(text), err: err}
			switch {
			case long:
				l.fault = "That line is too long to be an address. Paste the whole address:"
			case in.terminal && err == nil && len(text) == terminalLine:
				l.fault = "The terminal cut that line short. Paste the bare code, or the address's part behind the question mark:"
			}
			return l
		case n == 0:
			if idle++; idle == 100 {
				return line{err: io.ErrNoProgress}
			}
		case len(text) == maxAddress:
			long = true
		default:
			text, idle = append(text, c[0]), 0
		}
	}
}

// pasted puts together what a person pastes.
type pasted struct {
	state string // of the login
	kept  string // the beginning of an address, whose end has not come yet
}

// add returns the callback that l completes or, if it completes none, what to tell the person.
func (p *pasted) add(l line) (callback, complaint string) {
	if l.fault != "" {
		p.kept = ""
		return "", l.fault
	}
	text := clean(l.text)
	if text == "" && p.kept == "" {
		return "", "Nothing was pasted. Paste the whole address:"
	}
	whole := text
	if !isURL(text) {
		whole = p.kept + text
	}
	p.kept = ""
	if text != "" && l.err == nil && len(whole) < maxAddress && p.unfinished(whole) {
		p.kept = whole
		return "", "That address has no end yet. Paste the rest of it, or all of it again, or nothing to try it as it is:"
	}
	return whole, ""
}

// unfinished reports whether address visibly lacks its end, as after a paste that a line break cuts in two.
func (p *pasted) unfinished(address string) bool {
	_, query, found := strings.Cut(address, "?")
	if !found {
		query = address
	}
	if !isURL(address) && !strings.Contains(query, "code=") {
		return false // a bare code, or something else altogether
	}
	params, _ := url.ParseQuery(query) // what the cut has left of an escape is no reason to stop
	switch {
	case params.Has("error"):
		return false
	case p.state == "":
		return !params.Has("code")
	}
	state := params.Get("state")
	return state != p.state && strings.HasPrefix(p.state, state)
}

func isURL(s string) bool {
	return strings.HasPrefix(s, "https://") || strings.HasPrefix(s, "http://")
}

// clean takes away what comes along with a pasted address and is never part of one: white space, also inside, the
// quotes and brackets around it, and what terminals and word processors add unseen.
func clean(s string) string {
	s = strings.NewReplacer("\x1b[200~", "", "\x1b[201~", "").Replace(s) // bracketed paste
	s = strings.Map(func(r rune) rune {
		if unicode.IsSpace(r) || !unicode.IsGraphic(r) {
			return -1
		}
		return r
	}, s)
	return strings.Trim(s, "\"'`<>“”‘’«»")
}
