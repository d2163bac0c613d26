package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"time"
)

// checkFiles looks at the files that settings with secrets come from: who can read them, and whether git would take them
// to others.
func (d *doctor) checkFiles(ctx context.Context) {
	if path, err := filepath.Abs(".env"); err == nil {
		d.checkFile(ctx, ".env", path)
	}
	if path := profileFile(d.a.profile); path != "" {
		d.checkFile(ctx, d.a.profile+".env", path)
	}
}

func (d *doctor) checkFile(ctx context.Context, topic, path string) {
	info, err := os.Stat(path)
	if errors.Is(err, fs.ErrNotExist) || err == nil && !info.Mode().IsRegular() {
		return
	}
	if err != nil {
		d.wrong(1, "", topic, err.Error(), "make it readable for you", "troubleshooting.md#settings")
		return
	}
	well := true
	if mode := info.Mode().Perm(); runtime.GOOS != "windows" && mode&0o077 != 0 {
		well = false
		d.wrong(1, "", topic, fmt.Sprintf("%s has mode %#o: other users can read or write what is in it", path, mode),
			fmt.Sprintf("run: chmod 600 %q; and if others use this computer, take new secrets at the broker", path), "troubleshooting.md#settings")
	}
	switch taken, err := gitTakes(ctx, path); {
	case err != nil:
		d.note("", topic, fmt.Sprintf("it is in a git repository, and git cannot tell whether it takes the file: %v", err), "see that .gitignore names it")
	case taken == "tracked":
		well = false
		d.wrong(1, "", topic, path+" is in git, which keeps every version of it, also for whoever clones the repository",
			fmt.Sprintf("take new secrets at the broker, then run: git rm --cached %q; and add a line %s to .gitignore", path, filepath.Base(path)), "troubleshooting.md#settings")
	case taken == "untracked":
		well = false
		d.wrong(1, "", topic, "git would take "+path+" with the next git add",
			"add a line "+filepath.Base(path)+" to .gitignore", "troubleshooting.md#settings")
	}
	if well {
		d.ok("", topic, path+" is readable by this user alone, and git does not take it")
	}
}

// gitTakes reports whether the file at path is "tracked" by git, or "untracked" and would be added; else it is empty,
// as where there is no repository.
func gitTakes(ctx context.Context, path string) (string, error) {
	dir := filepath.Dir(path)
	if !inRepository(dir) {
		return "", nil
	}
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	git := func(args ...string) (code int, err error) {
		// A repository of somebody else's must not name a program to run.
		cmd := exec.CommandContext(ctx, "git", append([]string{"-C", dir, "-c", "core.fsmonitor=false", "-c", "core.hooksPath=/dev/null"}, args...)...)
		// One that lacks a file of its index would have it fetched, by a program that its settings name.
		cmd.Env = append(os.Environ(), "GIT_NO_LAZY_FETCH=1", "GIT_ALLOW_PROTOCOL=")
		err = cmd.Run()
		if exit, ok := errors.AsType[*exec.ExitError](err); ok && exit.ExitCode() == 1 {
			return 1, nil
		}
		return 0, err
	}
	tracked, err := git("ls-files", "--error-unmatch", "--", filepath.Base(path))
	if err != nil {
		return "", err
	}
	if tracked == 0 {
		return "tracked", nil
	}
	ignored, err := git("check-ignore", "-q", "--", filepath.Base(path))
	if err != nil || ignored == 0 {
		return "", err
	}
	return "untracked", nil
}

// inRepository reports whether a folder is one of git's, or below one.
func inRepository(dir string) bool {
	for {
		if _, err := os.Lstat(filepath.Join(dir, ".git")); err == nil {
			return true
		}
		parent := filepath.Dir(dir)
		if parent == dir {
			return false
		}
		dir = parent
	}
}
