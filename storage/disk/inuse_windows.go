package disk

import (
	"errors"

	"golang.org/x/sys/windows"
)

// inUse reports whether err may be due to another program that has the file open.
func inUse(err error) bool {
	return errors.Is(err, windows.ERROR_ACCESS_DENIED) || errors.Is(err, windows.ERROR_SHARING_VIOLATION)
}
