package porting

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"fmt"
	"strings"

	"github.com/brokerauth/brokerauth"
)

// decrypt opens a Fernet token, version 0x80 of github.com/fernet/spec: version, time, IV, AES-128-CBC with PKCS #7
// padding, HMAC-SHA256 of all that. The key is 16 bytes for the HMAC and 16 for AES.
func decrypt(key, token string) (string, error) {
	k, err := base64url(key)
	if err != nil || len(k) != 32 {
		return "", errors.New("the encryption key is not of the form that Schwabdev takes: 32 bytes in URL-safe base64")
	}
	t, err := base64url(token)
	const head, tail = 1 + 8 + aes.BlockSize, sha256.Size
	if err != nil || len(t) < head+aes.BlockSize+tail || (len(t)-head-tail)%aes.BlockSize != 0 || t[0] != 0x80 {
		return "", fmt.Errorf("what is encrypted in it is damaged: %w", brokerauth.ErrCorrupt)
	}
	signed, sum := t[:len(t)-tail], t[len(t)-tail:]
	mac := hmac.New(sha256.New, k[:16])
	mac.Write(signed)
	if !hmac.Equal(mac.Sum(nil), sum) {
		return "", errors.New("it cannot be decrypted: the encryption key is not the one that Schwabdev was given, or the file was changed")
	}
	block, err := aes.NewCipher(k[16:])
	if err != nil {
		return "", err
	}
	plain := make([]byte, len(signed)-head)
	cipher.NewCBCDecrypter(block, signed[9:head]).CryptBlocks(plain, signed[head:])
	n := int(plain[len(plain)-1])
	if n < 1 || n > aes.BlockSize {
		return "", fmt.Errorf("what is encrypted in it is damaged: %w", brokerauth.ErrCorrupt)
	}
	return string(plain[:len(plain)-n]), nil
}

func base64url(s string) ([]byte, error) {
	return base64.RawURLEncoding.DecodeString(strings.TrimRight(s, "="))
}
