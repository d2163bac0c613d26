// Package flows takes a person to a broker's login page and back.
//
// [Auto] is the flow for most programs. It listens at the app's redirect address on this computer and takes an address
// that the person pastes, whichever comes first, so that it serves at a desk, over SSH and in a container alike.
// [Browser] is the same with a browser opened everywhere, and an error where nothing can be listened on. [Paste] never
// listens: it suits redirect addresses that are not on this computer. [Web] is for web apps: a handler that logs in each
// of the app's users.
//
//	err := session.Login(ctx, flows.Auto(nil))
//
// # What the person meets
//
// Brokers that insist on https for the redirect address cannot be given a certificate that browsers know, as nobody
// vouches for 127.0.0.1. So the flows make one, once, and keep it with its key in the folder brokerauth under
// [os.UserConfigDir], in the file loopback.pem: the browser warns of it a first time and then, if told so, no more.
// It vouches for nothing but 127.0.0.1, ::1 and localhost, cannot sign others, and is replaced after about a year.
//
// The browser is opened at a one-time address of the flow's own, which leads on to the broker. So the warning comes
// before the login, not in the 30 seconds that a broker's code lives, and the list of processes shows no secret. It does
// show the one-time address: should another user of the computer open it first, to have a login of their own kept here,
// the person is told so as soon as their own browser comes second.
//
// # When a login ends
//
// Only a request to the redirect address that carries this login's state counts; all others are refused and the wait
// goes on. So it does after a pasted text that is no address of this login. It ends with what the broker or the store
// answers, be it yes or no, with an answer that carries this login's state, with the context, or after
// [Options.Timeout]. Then nothing is left: no listener, no goroutine.
package flows

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/url"
	"os"
	"sync"
	"time"

	"github.com/brokerauth/brokerauth"
)

// Options are what the flows share. A nil *Options is the zero Options, which serves most programs.
type Options struct {
	// In is where pasted addresses come from. Nil is the controlling terminal, never os.Stdin: a flow opens and closes
	// it, and where there is none takes no paste.
	//
	// No more is read than the line that was needed. Browser and Auto must be able to stop reading when the browser
	// comes first, so they use an In only if its SetReadDeadline method works, as it does for a network connection and
	// an os.Pipe, but not for os.Stdin. Paste reads any; when the context ends, a Read that cannot be stopped is left
	// behind.
	In io.Reader
	// Out is what the person reads; nil is os.Stderr.
	Out io.Writer
	// Open opens an address in a browser; one that only returns nil opens none. An error is shown and the login goes
	// on. It runs beside the flow, which ends ctx and waits for it before it returns.
	//
	// Nil is the system's way: $BROWSER, which names a program and may hold %s for the address, else xdg-open, open or
	// rundll32. The program gets no terminal, no standard streams, and of the environment only what a browser needs.
	// Auto then opens none over SSH, in a container, in a hosted notebook or without a display, unless $BROWSER is set.
	Open func(ctx context.Context, url string) error
	// Certificate is what the redirect address shows, if that is https; nil is this computer's own.
	Certificate *tls.Certificate
	// Timeout is how long to wait for the person. Zero is five minutes; below zero, only the context ends the wait.
	Timeout time.Duration
}

// finisher is a Flow's finish.
type finisher = func(ctx context.Context, callback string) error

func (o *Options) orDefault() Options {
	var opts Options
	if o != nil {
		opts = *o
	}
	if opts.Out == nil {
		opts.Out = os.Stderr
	}
	if opts.Timeout == 0 {
		opts.Timeout = 5 * time.Minute
	}
	return opts
}

// say tells the person something. There is nothing to do about a terminal that cannot be written to.
func (o *Options) say(format string, args ...any) { fmt.Fprintf(o.Out, format+"\n", args...) }

// Browser returns a flow that opens a browser and listens at the login's redirect address, which must be http or https
// on 127.0.0.1, ::1 or localhost, and takes a pasted address as well.
//
// It listens before it shows anything. If it cannot, the error matches errors.ErrUnsupported (the address is not on
// this computer), syscall.EADDRINUSE (another program has the port) or fs.ErrPermission (this user may not have it).
// When nobody came back in time, the error matches context.DeadlineExceeded.
func Browser(o *Options) brokerauth.Flow {
	opts := o.orDefault()
	if opts.Open == nil {
		opts.Open = openBrowser
	}
	return func(ctx context.Context, login *brokerauth.Login, finish finisher) error {
		web, err := listen(ctx, login)
		if err != nil {
			return err
		}
		return opts.browse(ctx, login, finish, web)
	}
}

// Auto returns the flow that suits the place: Browser's or, if the redirect address is not on this computer or this user
// may not listen there, Paste's. Either opens a browser unless the person would not see it: over SSH, in a container, in a
// hosted notebook, without a display. On WSL it is that of Windows.
// A port that another program has is an error, as with Browser: that program would get the code.
func Auto(o *Options) brokerauth.Flow {
	opts := o.orDefault()
	return func(ctx context.Context, login *brokerauth.Login, finish finisher) error {
		web, err := listen(ctx, login)
		switch {
		case errors.Is(err, errors.ErrUnsupported):
			opts.say("The redirect address %s cannot be listened at here, so its answer is pasted.\n", login.RedirectURL)
			return opts.pasteFrom(ctx, login, finish, opts.open())
		case errors.Is(err, fs.ErrPermission):
			u, _ := url.Parse(login.RedirectURL) // which has been tried
			opts.say("This user may not listen on port %s, that of the redirect address %s, so its answer is pasted.\n",
				port(u), login.RedirectURL)
			return opts.pasteFrom(ctx, login, finish, opts.open())
		case err != nil:
			return err
		}
		opts := opts
		opts.Open = opts.open()
		if os.Getenv("SSH_CONNECTION") != "" {
			opts.say("To log in with the browser of the computer you sit at, run there first, with this one's name for HOST:\n\n"+
				"    ssh -L %s HOST\n", web.tunnel())
		}
		return opts.browse(ctx, login, finish, web)
	}
}

// open is what opens a browser, nil where the person would not see it.
func (o *Options) open() func(ctx context.Context, url string) error {
	if o.Open != nil {
		return o.Open
	}
	if why := unseen(); why != "" {
		o.say("No browser is opened, as %s.", why)
		return nil
	}
	return openBrowser
}

// Paste returns a flow that shows the login page's address, which the person opens anywhere, and reads the address
// that the browser was sent back to: all of it, its query or, where the broker allows that, the bare code.
// It opens no browser and listens nowhere.
//
// When the input ends, the error matches io.ErrUnexpectedEOF; without any, fs.ErrNotExist.
func Paste(o *Options) brokerauth.Flow {
	opts := o.orDefault()
	return opts.paste
}

func (o *Options) paste(ctx context.Context, login *brokerauth.Login, finish finisher) error {
	return o.pasteFrom(ctx, login, finish, nil)
}

// pasteFrom opens a browser besides, unless open is nil.
func (o *Options) pasteFrom(ctx context.Context, login *brokerauth.Login, finish finisher, open func(context.Context, string) error) error {
	if err := givenUp(ctx); err != nil {
		return err
	}
	in, err := o.input(true)
	if err != nil {
		return err
	}
	defer in.close()
	o.say("Log in at:\n\n    %s\n", login.URL)
	o.say("After you log in, the browser shows a page that cannot be reached: that is right; " +
		"copy its whole address and paste it here within 30 seconds:")
	if open == nil {
		return o.wait(ctx, login, finish, nil, in, nil)
	}
	// Not with the login's own address, whose state all users of the computer would see among the programs that run.
	web, err := doorstep(ctx, login)
	if err != nil {
		return err
	}
	return o.waitOpened(ctx, login, finish, web, in, open)
}

// browse serves web, which it closes. A nil Open opens no browser.
func (o *Options) browse(ctx context.Context, login *brokerauth.Login, finish finisher, web *server) (err error) {
	var cert *tls.Certificate
	var fingerprint, why string
	if web.redirect.Scheme == "https" {
		if cert = o.Certificate; cert == nil {
			if cert, fingerprint, why, err = ownCertificate(ctx); err != nil {
				web.close(err)
				return err
			}
		}
	}
	web.serve(cert)
	in, _ := o.input(false)
	defer in.close()

	o.say("Log in at:\n\n    %s\n", web.startURL())
	if fingerprint != "" {
		// With the slash: https://127.0.0.1.evil.example starts so, too, but for that.
		o.say("Your browser will warn once about this computer's own certificate; "+
			"go on only if the address starts with %s/", web.origin())
		o.say("Its SHA-256: %s", fingerprint)
		if why != "" {
			o.say("It serves for this login only, as it could not be kept: %s.", why)
		}
		o.say("")
	}
	// From another computer nothing comes back but by a paste or by ssh's tunnel.
	switch {
	case in != nil:
		o.say("With a browser on another computer, log in at the address below instead. It ends at a page that\n"+
			"cannot be reached: that is right; copy its whole address and paste it here within 30 seconds.\n\n    %s\n", login.URL)
	case os.Getenv("SSH_CONNECTION") != "":
		o.say("or, with a browser on another computer, at:\n\n    %s\n", login.URL)
	}
	return o.waitOpened(ctx, login, finish, web, in, o.Open)
}

// waitOpened waits while open, if it is not nil, opens a browser, and closes web.
func (o *Options) waitOpened(ctx context.Context, login *brokerauth.Login, finish finisher,
	web *server, in *input, open func(context.Context, string) error) error {
	var opening sync.WaitGroup
	opened := make(chan error, 1)
	openCtx, cancel := context.WithCancel(ctx)
	if open != nil {
		opening.Go(func() { opened <- open(openCtx, web.startURL()) })
	}
	err := o.wait(ctx, login, finish, web, in, opened)
	web.close(err)
	// Not before: whatever open does may still be reading the last page.
	cancel()
	opening.Wait()
	return err
}

// wait hands finish what comes back, one at a time, until the login has ended. web, in and opened may be nil.
func (o *Options) wait(ctx context.Context, login *brokerauth.Login, finish finisher,
	web *server, in *input, opened <-chan error) error {
	if err := givenUp(ctx); err != nil {
		return err
	}
	var timeout <-chan time.Time
	if o.Timeout > 0 {
		timeout = time.After(o.Timeout)
	}
	var arrivals <-chan arrival
	var again <-chan struct{}
	if web != nil {
		arrivals, again = web.arrivals, web.again
	}
	var (
		lines     <-chan line
		pasted    = pasted{state: login.State}
		last      arrival // the web's last one, and what became of it
		lastError error
		refused   error // what became of the last address, whoever brought it
	)
	for {
		if lines == nil && in != nil {
			lines = in.next()
		}
		select {
		case <-ctx.Done():
			return givenUp(ctx)

		case <-timeout:
			if refused != nil {
				return says(context.DeadlineExceeded, "no address that finishes the login came back within %s; of the last one: %v", o.Timeout, refused)
			}
			return says(context.DeadlineExceeded, "nobody came back from the broker within %s: the redirect address is %s: "+
				"compare it with the one registered in the broker's portal", o.Timeout, login.RedirectURL)

		case err := <-opened:
			if err != nil {
				o.say("No browser was opened (%v): open the address yourself.", err)
			}

		case <-again:
			o.say("The login address was opened a second time, and works once. If the first time was not you, " +
				"another user of this computer was: stop this login and start again.")

		case a := <-arrivals:
			if a.callback == last.callback {
				a.reply <- lastError // a reload, or a browser that asks twice
				continue
			}
			err := finish(ctx, a.callback)
			if err == nil || a.proven || final(err) {
				return err // closing the server replies
			}
			o.say("%v", err)
			last, lastError, refused = a, err, err
			a.reply <- err

		case l := <-lines:
			lines = nil
			callback, complaint := pasted.add(l)
			if callback != "" {
				err := finish(ctx, callback)
				if err == nil || final(err) {
					return err
				}
				refused = err
				complaint = fmt.Sprintf("%v.\nPaste the whole address:", err)
			}
			switch {
			case l.err == nil:
				o.say("%s", complaint)
			case web != nil && !web.doorstep:
				in = nil // the browser may still come back
			case callback != "":
				return says(io.ErrUnexpectedEOF, "the input ended after an address that does not finish the login")
			default:
				return says(io.ErrUnexpectedEOF, "no address was given: paste the one that the browser shows after the login")
			}
		}
	}
}

// worded is an error whose own words say all that the text of the error beneath would.
type worded struct {
	text string
	err  error
}

func says(err error, format string, args ...any) error {
	return &worded{"flows: " + fmt.Sprintf(format, args...), err}
}

func (w *worded) Error() string { return w.text }
func (w *worded) Unwrap() error { return w.err }

// givenUp returns an error if ctx has ended.
func givenUp(ctx context.Context) error {
	if err := ctx.Err(); err != nil {
		return fmt.Errorf("flows: the login was given up: %w", err)
	}
	return nil
}

// final reports whether another address could not help: the broker has answered, could not be asked, or the login
// cannot be kept. What is left is about the address.
func final(err error) bool {
	e, ok := errors.AsType[*brokerauth.Error](err)
	return !ok || e.Kind != nil || e.Status != 0 || e.Code != ""
}
